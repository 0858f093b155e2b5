"""A bundle -> how TensorRT runs it: which shapes, and where its engines are kept; knows files, nothing of sessions.

Not run on a GPU yet. TensorRT builds an engine in minutes, for one model, one kind of GPU and one version of itself. So
it is built beforehand (`ptexport warmup`), for a profile of shapes that no batch ever leaves, and kept in a folder of
this user's alone, named by all that it depends on. ONNX Runtime writes it as a model with the engine inside, which then
needs no other file (an EP-context model).

Sources: https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html,
https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html
"""

import ctypes
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from ptexport.runtime.buckets import Buckets
from ptexport.runtime.bundle import MODEL, WEIGHTS, file_entry
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.gpu import read_gpu
from ptexport.runtime.home import cache_home
from ptexport.runtime.manifest import FileEntry
from ptexport.runtime.providers import TENSORRT, Provider, load_onnxruntime, needed_of

Build = Literal["allowed", "never"]

ENGINE = "engine.onnx"
_RECORD = "engine.json"
_WORKSPACE_BYTES = 1 << 30


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept beside an engine."""

    engine: FileEntry
    made_for: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """Where the engine of a bundle is kept, on one GPU with one set of versions.

    Attributes:
        folder: of this user's alone.
        made_for: all that an engine depends on.
        provider: with TensorRT's options.
    """

    folder: Path
    made_for: dict[str, str]
    provider: Provider

    @classmethod
    def of(cls, provider: Provider, files: Mapping[str, FileEntry], inputs: list[str], buckets: Buckets) -> "Engines":
        """Name the folder.

        Args:
            provider: TensorRT, on a device.
            files: of the bundle.
            inputs: names of the ids that the graph takes.
            buckets: shapes of its batches.

        Raises:
            ProviderError: there is no GPU, or TensorRT does not say which it is.
        """
        options = dict(provider.options) | tensorrt_options(inputs, buckets)
        gpu = read_gpu(provider.device)
        made_for = {
            "model": files[MODEL].sha256,
            "weights": files[WEIGHTS].sha256,
            "onnxruntime": load_onnxruntime().__version__,
            "tensorrt": tensorrt_version(),
            "gpu": gpu.name,
            "compute_capability": gpu.compute_capability,
            "options": msgspec.json.encode(options, order="deterministic").decode(),
        }
        key = hashlib.sha256(msgspec.json.encode(made_for, order="deterministic")).hexdigest()[:32]
        folder = cache_home() / "tensorrt" / key
        kept = {f"trt_{name}_cache_{what}": value for name in ("engine", "timing") for what, value in _kept(folder)}
        return cls(
            folder=folder,
            made_for=made_for,
            provider=replace(provider, options=tuple((options | kept).items())),
        )

    def opened(self, model: Path, build: Build) -> tuple[Path, Provider]:
        """Choose what to open: the engine that is kept, or the bundle's model, of which one is built and kept.

        Args:
            model: the bundle's.
            build: whether one may be built now, which takes minutes.

        Raises:
            ProviderError: there is none and none may be built, or others may write where it is.
        """
        if (self.folder / _RECORD).exists():
            self._check()
            entries = {"session.disable_model_compile": "1"}
            return self.folder / ENGINE, replace(self.provider, entries=tuple(entries.items()))
        if build == "never":
            raise ProviderError(
                f"provider tensorrt: no engine is kept in {self.folder}, and build is never; run 'ptexport warmup' on "
                "this device first"
            )
        make_private(self.folder)
        entries = {
            "ep.context_enable": "1",
            "ep.context_file_path": str(self.folder / ENGINE),
            "ep.context_embed_mode": "1",
        }
        return model, replace(self.provider, entries=tuple(entries.items()))

    def keep(self) -> None:
        """Record the engine that ONNX Runtime wrote; without that it is not used again."""
        if (self.folder / _RECORD).exists() or not (self.folder / ENGINE).exists():
            return
        record = _Record(engine=file_entry(self.folder / ENGINE), made_for=self.made_for)
        temporary = self.folder / f".{_RECORD}.{os.getpid()}"
        temporary.write_bytes(msgspec.json.encode(record))
        temporary.replace(self.folder / _RECORD)

    def _check(self) -> None:
        """Refuse an engine that this user did not make: it is a program."""
        check_private(self.folder)
        try:
            record = msgspec.json.decode((self.folder / _RECORD).read_bytes(), type=_Record)
            same = record.made_for == self.made_for and record.engine == file_entry(self.folder / ENGINE)
        except (OSError, msgspec.DecodeError):
            same = False
        if not same:
            raise ProviderError(f"{self.folder}: holds no whole engine; remove the folder, and run 'ptexport warmup'")


def tensorrt_options(inputs: list[str], buckets: Buckets) -> dict[str, str]:
    """Name TensorRT's options, with a profile of shapes for each input: without one it takes the first that it sees."""
    profile = {
        f"trt_profile_{name}_shapes": ",".join(f"{of}:{rows}x{tokens}" for of in inputs)
        for name, (rows, tokens) in zip(("min", "opt", "max"), buckets.profile(), strict=True)
    }
    return {
        **profile,
        "trt_max_workspace_size": str(_WORKSPACE_BYTES),
        "trt_builder_optimization_level": "3",
        "trt_layer_norm_fp32_fallback": "1",
    }


def _kept(folder: Path) -> list[tuple[str, str]]:
    return [("enable", "1"), ("path", str(folder))]


def tensorrt_version() -> str:
    """Ask TensorRT which version it is.

    Raises:
        ProviderError: it does not load.
    """
    library = next(name for name in needed_of(TENSORRT) if name.startswith("libnvinfer."))
    try:
        number = ctypes.CDLL(library).getInferLibVersion()
    except (OSError, AttributeError) as e:
        raise ProviderError(f"provider tensorrt: {library} does not say its version ({e}); install it again") from e
    # 100300 is 10.3.0 since TensorRT 10, 8601 is 8.6.1 before.
    return ".".join(map(str, (number // 10000, number // 100 % 100, number % 100)))


def make_private(folder: Path) -> None:
    """Make a folder that nobody else may read or write.

    Raises:
        ProviderError: it is there, and others may.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)


def check_private(folder: Path) -> None:
    """Refuse a folder that is another user's, or that others may write to: what is in it is run.

    Raises:
        ProviderError: it is.
    """
    status = folder.lstat()
    others = status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or others:
        raise ProviderError(
            f"{folder}: is not a folder of this user's alone; remove it, or 'chmod 700' it if nobody else wrote there"
        )
