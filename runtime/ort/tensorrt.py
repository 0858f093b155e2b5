"""A bundle -> how TensorRT runs it: which shapes, and where its engines are kept; knows files, nothing of sessions.

Not run on a GPU yet. TensorRT builds an engine in minutes, for one model, one kind of GPU and one version of itself. So
it is built beforehand (`ptexport warmup`), for a profile of shapes that no batch ever leaves, and kept in a folder of
this user's alone, named by all that it depends on. ONNX Runtime writes it as a model with the engine inside, which then
needs no other file (an EP-context model).

Sources: https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html,
https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html
"""

import contextlib
import ctypes
import gc
import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeVar

import msgspec

from ptexport.runtime.bundle.folder import MODEL, WEIGHTS, file_entry
from ptexport.runtime.bundle.manifest import FileEntry
from ptexport.runtime.cache_dir import cache_home
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.ort.batch_shapes import Buckets
from ptexport.runtime.ort.cuda_driver import read_gpu
from ptexport.runtime.ort.providers import TENSORRT, Provider, load_onnxruntime, needed_of

Build = Literal["allowed", "never"]
_T = TypeVar("_T")

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
        options = tensorrt_options(inputs, buckets)
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
        every = dict(provider.options) | options
        folder = cache_home() / "tensorrt" / key
        return cls(folder=folder, made_for=made_for, provider=replace(provider, options=tuple(every.items())))

    def open(self, model: Path, build: Build, load: Callable[[Path, Provider], _T]) -> _T:
        """Load the engine that is kept; before that build it, if it is not there.

        What is built is let go and opened again as it is kept, so that who may build runs what others will.

        Args:
            model: the bundle's.
            build: whether one may be built now, which takes minutes.
            load: opens a session; called with what to open and on what.

        Raises:
            ProviderError: there is none and none may be built, none was written, or others may write where it is.
        """
        if not self.folder.exists():
            if build == "never":
                raise ProviderError(
                    f"provider tensorrt: no engine is kept in {self.folder}, and build is never; run 'ptexport warmup' "
                    "on this device first"
                )
            self._build(model, load)
        self._check()
        entries = (("session.disable_model_compile", "1"),)
        return load(self.folder / ENGINE, replace(self.provider, entries=entries))

    def _build(self, model: Path, load: Callable[[Path, Provider], object]) -> None:
        _make_private(self.folder.parent)
        with TemporaryDirectory(prefix=f"{self.folder.name}.", dir=self.folder.parent) as name:  # mode 700
            built = Path(name)
            written = {
                "trt_dump_ep_context_model": "True",
                "trt_ep_context_file_path": str(built / ENGINE),
                "trt_ep_context_embed_mode": "1",
                "trt_timing_cache_enable": "True",
                "trt_timing_cache_path": str(self.folder.parent),
            }
            options = dict(self.provider.options) | written
            load(model, replace(self.provider, options=tuple(options.items())))  # it may write when it is let go
            gc.collect()
            if not (built / ENGINE).is_file():
                raise ProviderError(
                    "provider tensorrt: built no engine of the whole graph; export it with --target tensorrt, or use "
                    "provider cuda"
                )
            record = _Record(engine=file_entry(built / ENGINE), made_for=self.made_for)
            (built / _RECORD).write_bytes(msgspec.json.encode(record))
            with contextlib.suppress(FileExistsError, OSError):  # another process was first
                built.rename(self.folder)
                built.mkdir(mode=0o700)  # for the end of the block to remove

    def _check(self) -> None:
        """Refuse an engine that this user did not make: it is a program."""
        _check_private(self.folder)
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
        "trt_layer_norm_fp32_fallback": "True",  # the binding takes no 1
    }


def tensorrt_version() -> str:
    """Ask TensorRT which version it is.

    Raises:
        ProviderError: it does not load.
    """
    library = next((name for name in needed_of(TENSORRT) if name.startswith("libnvinfer.")), "libnvinfer.so")
    try:
        number = ctypes.CDLL(library).getInferLibVersion()
    except (OSError, AttributeError) as e:
        raise ProviderError(f"provider tensorrt: {library} does not say its version ({e}); install it again") from e
    # 100300 is 10.3.0 since TensorRT 10, 8601 is 8.6.1 before.
    return ".".join(map(str, (number // 10000, number // 100 % 100, number % 100)))


def _make_private(folder: Path) -> None:
    """Make a folder that nobody else may read or write."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder)


def _check_private(folder: Path) -> None:
    """Refuse a folder that is another user's, or that others may write to: what is in it is run.

    Raises:
        ProviderError: it is.
    """
    status = folder.lstat()
    others = status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    own = not hasattr(os, "getuid") or status.st_uid == os.getuid()  # Windows has none
    if not stat.S_ISDIR(status.st_mode) or not own or (others and os.name == "posix"):
        raise ProviderError(
            f"{folder}: is not a folder of this user's alone; remove it, or 'chmod 700' it if nobody else wrote there"
        )
