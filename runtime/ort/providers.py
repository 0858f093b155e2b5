"""Execution providers: choose one, open a session on it, and check that it runs the graph.

ONNX Runtime lists providers that cannot load, falls back to the CPU without an error if CUDA is missing, and tries
other providers if a run fails. So this module checks the requested provider twice: before a session is opened, that the
libraries of the provider load, and afterwards, that the provider got the nodes.
"""

import contextlib
import functools
import importlib.util
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from ptexport.runtime.errors import MissingExtraError, ProviderError, PtexportError, reason
from ptexport.runtime.ort.elf import loads, needed_libraries, run_paths
from ptexport.runtime.ort.known_plugins import KNOWN_PLUGINS

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
_SHORT_NAMES = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
_GPU_TOLERANCE = 0.05
"""Largest difference of a golden row's logit on CUDA and TensorRT; parity was measured on the CPU."""
_OURS = {"device_id": "--device", "enable_cuda_graph": "--cuda-graph", "trt_cuda_graph_enable": "--cuda-graph"}
"""Options of CUDA and TensorRT that the engine relies on."""
_DRIVER = "libcuda.so.1"
_VERSIONED = {"libcublas": "CUDA", "libcudart": "CUDA", "libcudnn": "cuDNN", "libnvinfer": "TensorRT"}
"""Products by library, if both have the same version number, unlike libcurand and others."""

_log = logging.getLogger("ptexport.runtime")

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """An execution provider with its options.

    Attributes:
        name: ONNX Runtime's name.
        device: number of the GPU, or of a plugin's device among those that it lists; 0 on the CPU.
        options: options of the provider.
        entries: configuration entries of the session.
        cuda_graph: whether the run of each batch shape is recorded as a CUDA graph and replayed.
        degraded: why "auto" chose the CPU instead of CUDA; None: it did not.
        ep_device: an OrtEpDevice of a plugin; None: the provider is built into ONNX Runtime.
        hardware: what a plugin says of its device; None: the provider is built into ONNX Runtime.
        tolerance: largest difference of a golden row's logit, if the provider is not the CPU's.
    """

    name: str = CPU
    device: int = 0
    options: Pairs = ()
    entries: Pairs = ()
    cuda_graph: bool = False
    degraded: str | None = field(default=None, compare=False)
    ep_device: Any = field(default=None, compare=False)
    hardware: str | None = field(default=None, compare=False)
    tolerance: float = field(default=_GPU_TOLERANCE, compare=False)

    @property
    def device_type(self) -> str:
        """ONNX Runtime's name of the device type that holds values; a plugin copies them to its device itself."""
        return "cuda" if self.name in (CUDA, TENSORRT) else "cpu"

    def named(self) -> list[str | tuple[str, dict[str, str]]]:
        """List providers for an InferenceSession; CUDA runs the nodes that TensorRT does not take."""
        with_options: list[str | tuple[str, dict[str, str]]] = [(self.name, dict(self.options))]
        return [*with_options, (CUDA, cuda_options(self.device))] if self.name == TENSORRT else with_options


def load_onnxruntime() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as e:
        raise MissingExtraError("ONNX Runtime is not installed; pip install 'ptexport[cpu]' or 'ptexport[gpu]'") from e
    return onnxruntime  # type: ignore[no-any-return]


def choose_provider(
    requested: str,
    *,
    device: int = 0,
    cuda_graph: bool = False,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Provider:
    """Choose an execution provider that is built into ONNX Runtime.

    Args:
        requested: "auto" (CUDA if it loads, else the CPU), "cpu", "cuda", "tensorrt", or ONNX Runtime's own name of
            another one. "auto" never chooses TensorRT, which builds engines for minutes.
        device: number of the GPU.
        cuda_graph: see `Provider`.
        options: the provider's own options, which come before ours.

    Raises:
        ProviderError: this ONNX Runtime was built without the provider, or a library that it needs does not load; or
            options are given to "auto" or the CPU's.
    """
    available = load_onnxruntime().get_available_providers()
    name = full_name(requested)
    if options and name in ("auto", CPU):
        got = f"got the option {next(iter(options))}"
        raise ProviderError(f"provider {requested}: {got}, need none; leave it out, or name another provider")
    for option, ours in _OURS.items():
        if option in options:
            raise ProviderError(
                f"provider {requested}: got the option {option}, need none, since {ours} sets it; use that"
            )
    if requested == "auto":
        return _automatic(available, device, cuda_graph)
    if name not in available:
        ours = ", ".join(("auto", *_SHORT_NAMES))
        known = f"need {ours}, a plugin ({', '.join(KNOWN_PLUGINS)}), or one that it has: {', '.join(available)}"
        advice = "install another, such as 'ptexport[gpu]'" if name in _SHORT_NAMES.values() else "choose one of these"
        got = f"{_onnxruntime()} was built without it" if name.endswith("ExecutionProvider") else "unknown"
        raise ProviderError(f"provider {requested}: {got}, {known}; {advice}")
    if name == CPU:
        return _on_cpu(requested, device, cuda_graph)
    if name not in (CUDA, TENSORRT):
        return replace(_on_cpu(requested, device, cuda_graph), name=name, options=tuple(options.items()))
    lacking = lacking_libraries(name)
    if lacking:
        raise ProviderError(f"provider {requested}: {lacking}; install what is missing, or use provider cpu")
    chosen = _on_gpu(name, device, cuda_graph)
    return replace(chosen, options=tuple((dict(chosen.options) | dict(options)).items()))


def full_name(requested: str) -> str:
    """Return ONNX Runtime's name of a provider that is built into it."""
    return _SHORT_NAMES.get(requested, requested)


def _on_cpu(requested: str, device: int, cuda_graph: bool) -> Provider:
    if device or cuda_graph:
        got = f"device {device}" if device else "cuda_graph"
        raise ProviderError(f"provider {requested}: got {got}, which is for cuda and tensorrt; leave it out")
    return Provider()


def _on_gpu(name: str, device: int, cuda_graph: bool) -> Provider:
    options = cuda_options(device) if name == CUDA else {"device_id": str(device)}
    if cuda_graph:
        options |= {"enable_cuda_graph": "1"} if name == CUDA else {"trt_cuda_graph_enable": "True"}
    return Provider(name=name, device=device, options=tuple(options.items()), cuda_graph=cuda_graph)


def _automatic(available: list[str], device: int, cuda_graph: bool) -> Provider:
    """Choose CUDA if it loads, else the CPU; log the reason if a GPU is, or may be, left unused."""
    driver = loads(_DRIVER)
    lacking = lacking_libraries(CUDA) if CUDA in available else f"{_onnxruntime()} was built without {CUDA}"
    if lacking is None:
        return _on_gpu(CUDA, device, cuda_graph)
    if device or cuda_graph:
        got = f"device {device}" if device else "cuda_graph"
        raise ProviderError(f"{got}: {lacking}; install what is missing, or leave it out")
    if not driver and CUDA not in available:
        return Provider()
    _log.log(logging.WARNING if driver else logging.INFO, "provider auto: uses the CPU, since %s", lacking)
    return Provider(degraded=lacking)


def cuda_options(device: int) -> dict[str, str]:
    """Make the options of CUDA: full float32 precision, as parity was measured, and memory in the requested sizes."""
    return {"device_id": str(device), "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}


def lacking_libraries(name: str) -> str | None:
    """Describe the missing libraries of a provider and the versions it needs; None: all libraries load."""
    if loads(_DRIVER):
        _preload(name)
    needed, folders = needed_of(name), run_paths(_library(name))
    missing = [library for library in needed if not loads(library, folders)]
    if not missing:
        return None
    versions = dict.fromkeys(map(_product, needed))
    needs = ", ".join(version for version in versions if version)
    return f"{', '.join(missing)} cannot be loaded, and {_onnxruntime()} needs {needs}"


def needed_of(name: str) -> list[str]:
    """List the libraries that a provider's library was linked with; empty if they cannot be read, as on Windows."""
    return needed_libraries(_library(name))


def _library(name: str) -> Path:
    short = name.removesuffix("ExecutionProvider").lower()
    return Path(str(load_onnxruntime().__file__)).parent / "capi" / f"libonnxruntime_providers_{short}.so"


def _product(library: str) -> str | None:
    """Return the product of a library: `cuDNN 9` for `libcudnn.so.9`; None: it is unknown."""
    if library == _DRIVER:
        return "an NVIDIA driver"
    parts = re.fullmatch(r"(\w+?)\.so\.(\d+)", library)
    product = _VERSIONED.get(parts[1]) if parts else None
    return f"{product} {parts[2]}" if product and parts else None


@functools.cache
def _preload(name: str) -> None:
    """Load the libraries of a provider that pip installed, so that the loader finds them; not run on a GPU yet.

    ONNX Runtime prints missing libraries on stdout, which other programs may read, so its output goes to stderr.
    """
    onnxruntime = load_onnxruntime()
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    if name == TENSORRT and importlib.util.find_spec("tensorrt_libs") is not None:
        importlib.import_module("tensorrt_libs")


def open_session(model: str, options: Any, provider: Provider) -> Any:
    """Open a session, and check that it runs on the provider.

    Returns:
        An InferenceSession.

    Raises:
        ProviderError: the session does not run on the provider.
    """
    for key, value in provider.entries:
        options.add_session_config_entry(key, value)
    if provider.name != CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    with provider_errors(provider):
        session = _open(model, options, provider)
    got = session.get_providers()
    if got[0] != provider.name:
        raise ProviderError(
            f"provider {provider.name}: device {provider.device} cannot be used, and {_onnxruntime()} took {got[0]}; "
            "see its output, or use provider cpu"
        )
    if provider.name != CPU:
        check_placement(placement(session), provider)
    return session


def _open(model: str, options: Any, provider: Provider) -> Any:
    onnxruntime = load_onnxruntime()
    if provider.ep_device is None:
        return onnxruntime.InferenceSession(model, options, providers=provider.named(), enable_fallback=0)
    options.add_provider_for_devices([provider.ep_device], dict(provider.options))
    return onnxruntime.InferenceSession(model, options, enable_fallback=0)


@contextlib.contextmanager
def provider_errors(provider: Provider) -> Iterator[None]:
    """Raise a ProviderError for any error of ONNX Runtime in the block; a PtexportError passes."""
    try:
        yield
    except PtexportError:
        raise
    except onnxruntime_errors() as e:
        advice = "export it for the CPU, or use another provider" if provider.name == CPU else "use provider cpu"
        raise ProviderError(f"provider {provider.name}: cannot run this graph ({shorten_error(e)}); {advice}") from e


@functools.cache
def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """List what ONNX Runtime raises: the exceptions of its extension module, which have no common base, and others."""
    state = load_onnxruntime().capi.onnxruntime_pybind11_state
    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, MemoryError)


def placement(session: Any) -> list[tuple[str, str]] | None:
    """List the provider and the operator of each node; None: this ONNX Runtime cannot tell (since 1.23 it can).

    ONNX Runtime records the providers if the session's configuration says so.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    parts = session.get_provider_graph_assignment_info()
    return [(part.ep_name, node.op_type) for part in parts for node in part.get_nodes()]


def check_placement(placed: Iterable[tuple[str, str]] | None, provider: Provider) -> None:
    """Check that all matrix products and attention run on the provider; sizes and masks may run on the CPU.

    Raises:
        ProviderError: a product runs elsewhere, or the provider got no node.
    """
    if placed is None:
        return
    placed = list(placed)
    elsewhere = Counter(
        (name, op_type)
        for name, op_type in placed
        if name != provider.name and (op_type == "Gemm" or "MatMul" in op_type or "Attention" in op_type)
    )
    if elsewhere:
        some = ", ".join(f"{n} {op_type} on {name}" for (name, op_type), n in elsewhere.most_common(3))
        raise ProviderError(
            f"provider {provider.name}: does not run the whole graph: {some}; export for it with --target, or use "
            "provider cpu"
        )
    if not any(name == provider.name for name, _ in placed):
        raise ProviderError(f"provider {provider.name}: got no node of the graph, need its products; use provider cpu")


def _onnxruntime() -> str:
    return f"onnxruntime {load_onnxruntime().__version__}"


def shorten_error(error: BaseException) -> str:
    """Shorten an error of ONNX Runtime: without its source files and signatures, and without the middle of a long one.

    CUDA's own reason, such as "CUDA failure 35: …", follows those; after it only the name of the call is kept.
    """
    text = " ".join(str(error).split())
    text = re.sub(r"\S*/onnxruntime\S* [^\[]*\[with [^\]]*\] ", "", text)
    text = re.sub(r" ; GPU=.* ; expr=(\w+).*", r" in \1", text)
    return reason(RuntimeError(re.sub(r"^\S*/onnxruntime\S* [^:]*::\S+ ", "", text)))
