"""A run -> what every system of a speed bench is asked: the same ids, prompt and words; without torch.

A folder that the systems' processes read: case.json, arrays.safetensors, encoder.safetensors, tokenizer.json. Its name
in the cache is its hash, so what rivals export for it is found again.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from ptexport.runtime.errors import BenchError
from ptexport.runtime.manifest import Manifest, Read
from ptexport.toolkit.cache import cached_folder
from ptexport.toolkit.checkpoint import Checkpoint
from ptexport.toolkit.methods import EncoderKind
from ptexport.toolkit.run import Run
from ptexport.toolkit.template import Template
from ptexport.toolkit.verbalizer import Verbalizer
from ptexport.toolkit.words import WordTokenizer

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
        read: position whose state becomes logits.
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
    read: Read
    word_ids: list[list[int]] | None
    temperature: float
    encoder: EncoderKind | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A case, opened.

    Attributes:
        path: its folder.
        config: what is asked.
        prompt_rows: float32 [p, e]; row k is of id `vocab + k`.
        label_rows: float32 [c, h], of a linear head.
        label_bias: float32 [c], likewise.
        encoder_weights: of the prompt encoder, by its own names.
    """

    path: Path
    config: CaseConfig
    prompt_rows: NDArray[np.float32]
    label_rows: NDArray[np.float32]
    label_bias: NDArray[np.float32]
    encoder_weights: dict[str, NDArray[np.float32]]

    @classmethod
    def open(cls, path: Path) -> "Case":
        """Read a folder that `make_case` made."""
        config = msgspec.json.decode((path / CASE).read_bytes(), type=CaseConfig)
        return cls(path=path, config=config, encoder_weights=load_file(path / ENCODER), **load_file(path / ARRAYS))

    @property
    def task_files(self) -> list[Path]:
        """What of it is new for another task."""
        return [self.path / ARRAYS, self.path / TOKENIZER]

    @property
    def digest(self) -> str:
        """Its hash, of which rivals' entries in the cache are named too."""
        return self.path.name.removesuffix(_SUFFIX)

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer: the whole template, nothing folded."""
        return Tokenizer.from_file(str(self.path / TOKENIZER))


def make_case(run: Run, checkpoint: Checkpoint) -> Case:
    """Write a case into the cache, or find it there.

    Raises:
        BenchError: rivals cannot be asked what this run was trained for.
    """
    config = run.config
    compiled = config.compile(run.tokenizer_json)
    refused = {
        f"method {config.method}, whose prompt is keys and values": config.n_prefix > 0,
        f"method {config.method}, which trained the backbone too": config.tuned is not None,
        f"template {config.template!r}, which takes more than one text": config.template.count("{") > 1,
        "open answers": config.open_answers,
        "prior correction, which rivals do not know": config.prior_correction,
    }
    for what, stands in refused.items():
        if stands:
            raise BenchError(f"run: {what}; rivals are asked virtual tokens around one text, leave out --against")
    words = WordTokenizer(run.tokenizer_json)
    tokenizer_json = compiled.tokenizer_json()
    case = CaseConfig(
        model=str(checkpoint.path),
        gguf=str(checkpoint.gguf) if checkpoint.gguf is not None else None,
        fingerprint=config.facts.fingerprint,
        causal=config.facts.causal,
        token_types=config.facts.token_types,
        vocab=config.facts.vocab,
        leading_ids=compiled.leading_ids,
        read=config.read,
        word_ids=_word_ids(run, words),
        temperature=run.temperature,
        encoder=config.encoder if _without(_ENCODER, run.trained) and config.encoder != "none" else None,
    )
    baked = run.baked
    arrays = {"prompt_rows": baked.prompt_rows, "label_rows": baked.label_rows, "label_bias": baked.label_bias}
    encoder = {name: run.trained[_ENCODER + name] for name in _without(_ENCODER, run.trained)} if case.encoder else {}
    encoded = msgspec.json.format(msgspec.json.encode(case), indent=2)
    digest = hashlib.sha256(encoded + tokenizer_json.encode())
    for array in (*arrays.values(), *encoder.values()):
        digest.update(np.ascontiguousarray(array).tobytes())

    def make(folder: Path) -> None:
        (folder / CASE).write_bytes(encoded)
        (folder / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
        for file, some in ((ARRAYS, arrays), (ENCODER, encoder)):
            save_file({name: np.ascontiguousarray(array) for name, array in some.items()}, folder / file)

    return Case.open(cached_folder("bench", digest.hexdigest()[:24] + _SUFFIX, make=make))


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


def _without(prefix: str, names: Iterable[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _word_ids(run: Run, words: WordTokenizer) -> list[list[int]] | None:
    config = run.config
    if config.label_words is None:
        return None
    verbalizer = Verbalizer(labels=tuple(config.labels), words=tuple(map(tuple, config.label_words)))
    spaced = Template.parse(config.template).answer_spaced
    return verbalizer.word_ids(words, spaced=spaced, unknown=config.facts.tokens.get("unk"))
