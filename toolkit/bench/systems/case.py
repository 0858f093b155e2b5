"""A run -> the task that every system of a speed bench gets: template, prompt and label words; without torch.

The case is a folder in the cache that the systems' processes read: case.json, arrays.safetensors, encoder.safetensors,
tokenizer.json. Its name is its hash, and the baselines' exports in the cache have this hash in their names too.
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

from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.bundle.manifest import Pooling
from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.synthetic_texts import only_task
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
    """The task without its arrays.

    Attributes:
        model: folder of the untouched backbone, in Hugging Face's layout.
        gguf: GGUF file that the backbone was converted from; None: it was not.
        fingerprint: hash of the backbone's weights.
        causal: whether attention is causal.
        token_types: whether the model takes `token_type_ids`.
        vocab: size of the embedding table; virtual tokens have ids from there on.
        leading_ids: ids of the template's tokens before the text; without the last one if the template has no others.
        pooling: hidden state that becomes logits.
        word_ids: ids of each label's words; None for a linear head.
        temperature: divisor of the logits.
        encoder: prompt encoder; None: the prompt embeddings were trained without one, or it is not known.
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
    """The task that every system gets.

    Attributes:
        path: its folder.
        config: task without its arrays.
        prompt_embeddings: float32 [p, e]; entry k belongs to id `vocab + k`.
        label_weights: weights of a linear head, float32 [c, h].
        label_bias: bias of a linear head, float32 [c].
    """

    path: Path
    config: CaseConfig
    prompt_embeddings: NDArray[np.float32]
    label_weights: NDArray[np.float32]
    label_bias: NDArray[np.float32]

    @classmethod
    def open(cls, path: Path) -> "Case":
        """Read a folder that `make_case` wrote."""
        config = msgspec.json.decode((path / CASE).read_bytes(), type=CaseConfig)
        return cls(path=path, config=config, **load_file(path / ARRAYS))

    @property
    def task_files(self) -> list[Path]:
        """The files that are new for another task."""
        return [self.path / ARRAYS, self.path / TOKENIZER]

    @property
    def digest(self) -> str:
        """Hash of the case, for names in the cache."""
        return self.path.name.removesuffix(_SUFFIX)

    def encoder_weights(self) -> dict[str, NDArray[np.float32]]:
        """Read the weights of the prompt encoder, by their names in the encoder."""
        return load_file(self.path / ENCODER)

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer with the whole template, without folding."""
        return Tokenizer.from_file(str(self.path / TOKENIZER))


def make_case(run: Run, checkpoint: Checkpoint) -> Case:
    """Write a case into the cache, or find it there.

    Raises:
        BenchError: the baselines do not support the run's task.
    """
    config, task_arrays = run.config, run.arrays
    _check_supported(config)
    compiled = config.compile(run.tokenizer_json)
    arrays = {
        "prompt_embeddings": task_arrays.prompt_embeddings,
        "label_weights": task_arrays.label_weights,
        "label_bias": task_arrays.label_bias,
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


def _check_supported(config: RunConfig) -> None:
    """Check that the baselines support a run.

    Raises:
        BenchError: they do not.
    """
    unsupported = {
        f"method {config.method} (past key/values)": config.n_prefix > 0,
        f"method {config.method} (trained backbone)": config.trained_backbone is not None,
        f"template {config.template!r} (several texts)": config.template.count("{") > 1,
        "an open vocabulary": config.open_vocabulary,
        "an imported classifier": config.imported is not None and config.imported.peft_type is None,
        "contextual calibration": config.contextual_calibration,
    }
    for what, applies in unsupported.items():
        if applies:
            raise BenchError(f"run: has {what}, need virtual tokens and one text; give only bundles to --against")


def check_same_task(run: Run, bundle: Bundle) -> None:
    """Check that run and bundle have the same template, labels and backbone; the comparison of logits checks the rest.

    Raises:
        BenchError: they differ.
    """
    task = only_task(bundle)
    for what, of_run, of_bundle in (
        ("template", run.config.template, task.template),
        ("labels", run.config.labels, task.labels),
        ("backbone", run.config.facts.fingerprint, bundle.manifest.backbone.fingerprint),
    ):
        if of_run != of_bundle:
            raise BenchError(
                f"--run: has {what} {of_run!r}, the bundle has {of_bundle!r}; give the run it was exported from"
            )


def _of_encoder(trained: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Select the weights of the prompt encoder, by their names in the encoder."""
    return {name.removeprefix(_ENCODER): array for name, array in trained.items() if name.startswith(_ENCODER)}


def _word_ids(run: Run) -> list[list[int]] | None:
    config = run.config
    if config.label_words is None:
        return None
    verbalizer = Verbalizer(labels=tuple(config.labels), words=tuple(map(tuple, config.label_words)))
    spaced, unknown = Template.parse(config.template).answer_spaced, config.facts.tokens.get("unk")
    return verbalizer.word_ids(WordTokenizer(run.tokenizer_json), spaced=spaced, unknown=unknown)
