"""What everything downstream needs to know of a backbone without loading it: plain facts, kept in every run."""

import hashlib

import msgspec


class BackboneFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Facts about one frozen language model and its tokenizer.

    Attributes:
        name: alias, hub name or folder name it was loaded by.
        revision: commit on the hub, where known.
        licence: as its model card says, where known.
        fingerprint: sha256 over its weights, whatever files they were in.
        config_sha256: sha256 over its configuration where it differs from the architecture's defaults.
        tokenizer_sha256: of its tokenizer's JSON.
        model_type: Transformers' name of the architecture.
        causal: whether each position sees only those before it.
        vocab: rows of the embedding table; virtual token k has id `vocab + k`.
        embedding_width: floats per embedding row (not the hidden size: ALBERT).
        max_positions: most tokens in one row, leading prompt included.
        token_types: whether it takes `token_type_ids`.
        tokens: its own tokens by role, of "cls", "sep", "bos", "mask", "pad" and "unk" those it has.
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


def sha256_text(text: str) -> str:
    """Hash a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()
