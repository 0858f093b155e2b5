"""TensorRT engines: profile of shapes, build, and cache.

Not run on a GPU yet. TensorRT takes minutes to build an engine, which is valid for one model, one kind of GPU and one
version of TensorRT. So `ptexport warmup` builds it beforehand, for a profile that contains every batch shape, and keeps
it in a private folder whose name is a hash of everything that the engine depends on. ONNX Runtime writes the engine
inside an ONNX model that needs no other file (an EP-context model).

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
from ptexport.runtime.errors import ProviderError, disk_errors
from ptexport.runtime.ort.batch_shapes import Buckets
from ptexport.runtime.ort.cuda_driver import read_gpu
from ptexport.runtime.ort.providers import TENSORRT, Provider, load_onnxruntime, needed_of

Build = Literal["allowed", "never"]
_T = TypeVar("_T")

ENGINE = "engine.onnx"
_RECORD = "engine.json"
_WORKSPACE_BYTES = 1 << 30
_NOT_IN_KEY = ("device_id", "trt_cuda_graph_enable")  # options that engines do not depend on


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The record beside a cached engine."""

    engine: FileEntry
    made_for: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """The cache of a bundle's engine, for one GPU and one set of versions.

    Attributes:
        folder: private folder of this user.
        made_for: everything that the engine depends on.
        provider: TensorRT with its options.
    """

    folder: Path
    made_for: dict[str, str]
    provider: Provider

    @classmethod
    def of(cls, provider: Provider, files: Mapping[str, FileEntry], inputs: list[str], buckets: Buckets) -> "Engines":
        """Choose the folder.

        Args:
            provider: TensorRT on a device.
            files: files of the bundle.
            inputs: names of the graph's inputs that get ids.
            buckets: batch shapes.

        Raises:
            ProviderError: there is no GPU, or the version of TensorRT cannot be read.
        """
        own = {name: value for name, value in provider.options if name not in _NOT_IN_KEY}
        options = tensorrt_options(inputs, buckets) | own
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
        """Load the cached engine; build it first if there is none.

        A new engine is written, freed and loaded from the cache, so that the process that builds it runs the same
        engine as later processes.

        Args:
            model: model file of the bundle.
            build: whether an engine may be built now, which takes minutes.
            load: opens a session, given a model file and a provider.

        Raises:
            OutputError: the folder cannot be written.
            ProviderError: there is no engine and `build` is "never", TensorRT wrote no engine, or the folder is not
                private.
        """
        with disk_errors(self.folder, "set XDG_CACHE_HOME to a folder that this user may write, with free space"):
            self._make_ready(model, build, load)
        entries = (("session.disable_model_compile", "1"),)
        return load(self.folder / ENGINE, replace(self.provider, entries=entries))

    def _make_ready(self, model: Path, build: Build, load: Callable[[Path, Provider], object]) -> None:
        if not self.folder.exists():
            if build == "never":
                raise ProviderError(
                    f"provider tensorrt: got no engine in {self.folder}, need one, since build is never; run "
                    "'ptexport warmup' on this device first"
                )
            self._build(model, load)
        self._check()

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
            load(
                model, replace(self.provider, options=tuple(options.items()))
            )  # the engine may be written when the session is freed
            gc.collect()
            if not (built / ENGINE).is_file():
                raise ProviderError(
                    "provider tensorrt: got no engine for the whole graph; export it with --target tensorrt, or use "
                    "provider cuda"
                )
            record = _Record(engine=file_entry(built / ENGINE), made_for=self.made_for)
            (built / _RECORD).write_bytes(msgspec.json.encode(record))
            with contextlib.suppress(FileExistsError, OSError):  # another process wrote it first
                built.rename(self.folder)
                built.mkdir(mode=0o700)  # TemporaryDirectory removes it

    def _check(self) -> None:
        """Check that the engine is this user's and unchanged: an engine is a program.

        Raises:
            ProviderError: it is not.
        """
        _check_private(self.folder)
        try:
            record = msgspec.json.decode((self.folder / _RECORD).read_bytes(), type=_Record)
            same = record.made_for == self.made_for and record.engine == file_entry(self.folder / ENGINE)
        except (OSError, msgspec.DecodeError):
            same = False
        if not same:
            raise ProviderError(f"{self.folder}: got a damaged engine; remove the folder, and run 'ptexport warmup'")


def tensorrt_options(inputs: list[str], buckets: Buckets) -> dict[str, str]:
    """Make the options of TensorRT, with a profile of shapes for each input; its default profile is the first shape."""
    profile = {
        f"trt_profile_{name}_shapes": ",".join(f"{of}:{rows}x{tokens}" for of in inputs)
        for name, (rows, tokens) in zip(("min", "opt", "max"), buckets.profile(), strict=True)
    }
    return {
        **profile,
        "trt_max_workspace_size": str(_WORKSPACE_BYTES),
        "trt_builder_optimization_level": "3",
        "trt_layer_norm_fp32_fallback": "True",  # the binding does not accept 1
    }


def tensorrt_version() -> str:
    """Read the version of TensorRT.

    Raises:
        ProviderError: TensorRT does not load.
    """
    library = next((name for name in needed_of(TENSORRT) if name.startswith("libnvinfer.")), "libnvinfer.so")
    try:
        number = ctypes.CDLL(library).getInferLibVersion()
    except (OSError, AttributeError) as e:
        raise ProviderError(f"provider tensorrt: {library} gives no version ({e}); install it again") from e
    # 100300 is 10.3.0 since TensorRT 10, 8601 is 8.6.1 before.
    return ".".join(map(str, (number // 10000, number // 100 % 100, number % 100)))


def _make_private(folder: Path) -> None:
    """Make a folder that only this user may read or write."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder)


def _check_private(folder: Path) -> None:
    """Check that a folder belongs to this user and is closed to all others, since its content is executed.

    Raises:
        ProviderError: it is not.
    """
    status = folder.lstat()
    others = status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    own = not hasattr(os, "getuid") or status.st_uid == os.getuid()  # not on Windows
    if not stat.S_ISDIR(status.st_mode) or not own or (others and os.name == "posix"):
        raise ProviderError(
            f"{folder}: got a folder that others may use, need a private one; remove it, or 'chmod 700' it "
            "if no other user wrote there"
        )
