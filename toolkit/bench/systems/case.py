"""A run -> what every system of a speed bench is asked: the same ids, prompt and words; without torch.

A folder that the systems' processes read: case.json, arrays.safetensors, encoder.safetensors, tokenizer.json. Its name
in the cache is its hash, so what rivals export for it is found again.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from tokenizers import Tokenizer

from ptexport.runtime.bundle.manifest import Manifest, Pooling
from ptexport.runtime.errors import BenchError
from ptexport.toolkit.methods import EncoderKind
from ptexport.toolkit.models.checkpoint import Checkpoint
from ptexport.toolkit.run.config import RunConfig
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.store.cache import cached_folder
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer

CASE, ARRAYS, ENCODER, TOKENIZER = "case.json", "arrays.safetensors", "encoder.safetensors", "tokenizer.json"
_SUFFIX = "-case"
_ENCODER = "encoder."


class CaseConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked, apart from the arrays.

    Attributes:
        model: folder of the untouched backbone, in Hugging Face's layout.
        gguf: file that this was converted from; None: it was not.
        fingerprint: of its weights.
        causal: whether each position sees only those before it.
        token_types: whether it takes `token_type_ids`.
        vocab: rows of its embedding table.
        leading_ids: ids of the template's tokens before the text, virtual ones from `vocab` on; all but the last where
            nothing else stands in the template.
        pooling: position whose state becomes logits.
        word_ids: words of each label; None for a linear head.
        temperature: that logits are divided by.
        encoder: the prompt encoder that made the rows; None: the rows themselves were trained, or it is not known.
    """

    model: str
    gguf: str | None
    fingerprint: str
    causal: bool
    token_types: bool
    vocab: int
    leading_ids: list[int]
    pooling: Pooling
    word_ids: list[list[int]] | None
    temperature: float
    encoder: EncoderKind | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A case, opened.

    Attributes:
        path: its folder.
        config: what is asked.
        prompt_embeddings: float32 [p, e]; row k is of id `vocab + k`.
        label_weights: float32 [c, h], of a linear head.
        label_bias: float32 [c], likewise.
    """

    path: Path
    config: CaseConfig
    prompt_embeddings: NDArray[np.float32]
    label_weights: NDArray[np.float32]
    label_bias: NDArray[np.float32]

    @classmethod
    def open(cls, path: Path) -> "Case":
        """Read a folder that `make_case` made."""
        config = msgspec.json.decode((path / CASE).read_bytes(), type=CaseConfig)
        return cls(path=path, config=config, **load_file(path / ARRAYS))

    @property
    def task_files(self) -> list[Path]:
        """What of it is new for another task."""
        return [self.path / ARRAYS, self.path / TOKENIZER]

    @property
    def digest(self) -> str:
        """Its hash, of which rivals' entries in the cache are named too."""
        return self.path.name.removesuffix(_SUFFIX)

    def encoder_weights(self) -> dict[str, NDArray[np.float32]]:
        """Read the prompt encoder's weights, by its own names; only one rival needs them."""
        return load_file(self.path / ENCODER)

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer: the whole template, nothing folded."""
        return Tokenizer.from_file(str(self.path / TOKENIZER))


def make_case(run: Run, checkpoint: Checkpoint) -> Case:
    """Write a case into the cache, or find it there.

    Raises:
        BenchError: rivals cannot be asked what this run was trained for.
    """
    config, baked = run.config, run.arrays
    _check_asked(config)
    compiled = config.compile(run.tokenizer_json)
    arrays = {
        "prompt_embeddings": baked.prompt_embeddings,
        "label_weights": baked.label_weights,
        "label_bias": baked.label_bias,
    }
    encoder = {} if config.encoder == "none" else _of_encoder(run.trained)
    case = CaseConfig(
        model=str(checkpoint.path),
        gguf=str(checkpoint.gguf) if checkpoint.gguf is not None else None,
        fingerprint=config.facts.fingerprint,
        causal=config.facts.causal,
        token_types=config.facts.token_types,
        vocab=config.facts.vocab,
        leading_ids=compiled.leading_ids,
        pooling=config.pooling,
        word_ids=_word_ids(run),
        temperature=run.temperature,
        encoder=config.encoder if encoder else None,
    )
    contents = {
        CASE: msgspec.json.format(msgspec.json.encode(case), indent=2),
        TOKENIZER: compiled.tokenizer_json().encode(),
        ARRAYS: save({name: np.ascontiguousarray(array) for name, array in arrays.items()}),
        ENCODER: save({name: np.ascontiguousarray(array) for name, array in encoder.items()}),
    }

    def make(folder: Path) -> None:
        for name, content in contents.items():
            (folder / name).write_bytes(content)

    digest = hashlib.sha256(b"".join(contents.values())).hexdigest()
    return Case.open(cached_folder("bench", digest[:24] + _SUFFIX, make=make))


def _check_asked(config: RunConfig) -> None:
    """Refuse what rivals cannot be asked."""
    refused = {
        f"method {config.method}, whose prompt is keys and values": config.n_prefix > 0,
        f"method {config.method}, which trained the backbone too": config.trained_backbone is not None,
        f"template {config.template!r}, which takes more than one text": config.template.count("{") > 1,
        "open answers": config.open_vocabulary,
        "prior correction, which rivals do not know": config.contextual_calibration,
    }
    for what, stands in refused.items():
        if stands:
            raise BenchError(f"run: {what}; rivals are asked virtual tokens around one text, leave out --against")


def check_same_task(run: Run, manifest: Manifest) -> None:
    """Check that a bundle was exported from a run, as far as its manifest tells; that answers agree tells the rest.

    Raises:
        BenchError: it was not.
    """
    for what, of_run, of_bundle in (
        ("template", run.config.template, manifest.template),
        ("labels", run.config.labels, manifest.labels),
        ("backbone", run.config.facts.fingerprint, manifest.backbone.fingerprint),
    ):
        if of_run != of_bundle:
            raise BenchError(
                f"--run: has {what} {of_run!r}, the bundle has {of_bundle!r}; give the run it was exported from"
            )


def _of_encoder(trained: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Take the prompt encoder's weights, by its own names."""
    return {name.removeprefix(_ENCODER): array for name, array in trained.items() if name.startswith(_ENCODER)}


def _word_ids(run: Run) -> list[list[int]] | None:
    config = run.config
    if config.label_words is None:
        return None
    verbalizer = Verbalizer(labels=tuple(config.labels), words=tuple(map(tuple, config.label_words)))
    spaced, unknown = Template.parse(config.template).answer_spaced, config.facts.tokens.get("unk")
    return verbalizer.word_ids(WordTokenizer(run.tokenizer_json), spaced=spaced, unknown=unknown)
