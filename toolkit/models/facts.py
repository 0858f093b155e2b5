"""Facts about a backbone that the other rooms need without loading it; every run records them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec


class BackboneFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Facts about one frozen language model and its tokenizer.

    Attributes:
        name: alias, hub name or folder name it was loaded by.
        revision: commit on the hub, if known.
        licence: licence in the model card, if known.
        fingerprint: sha256 over the weights, independent of their files.
        config_sha256: sha256 over the settings that differ from the defaults of the architecture.
        tokenizer_sha256: sha256 of the tokenizer as JSON.
        model_type: name of the architecture in Transformers.
        causal: whether each position attends only to earlier ones.
        vocab: rows of the embedding table; virtual token k has id `vocab + k`.
        embedding_width: floats per embedding (in ALBERT not the hidden size).
        max_positions: maximum tokens per row, including the prompt.
        token_types: whether the model takes `token_type_ids`.
        tokens: special tokens by role: "cls", "sep", "bos", "mask", "pad" and "unk", as far as they exist.
    """

    name: str
    revision: str | None
    licence: str | None
    fingerprint: str
    config_sha256: str
    tokenizer_sha256: str
    model_type: str
    causal: bool
    vocab: int
    embedding_width: int
    max_positions: int
    token_types: bool
    tokens: dict[str, str]


def sha256_files(paths: Sequence[Path]) -> str:
    """Return the sha256 of the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Return the sha256 of a text as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
