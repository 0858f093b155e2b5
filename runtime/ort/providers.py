"""Which execution provider runs a graph, and proof that it does; knows ONNX Runtime's providers, nothing of bundles.

ONNX Runtime lists providers that cannot load, takes the CPU without an error where CUDA is missing, and tries others
when a run fails. So what was asked is compared with what there is: before a session is opened, by the libraries that
its provider needs, and after, by the nodes that it was given.
"""

import contextlib
import functools
import importlib.util
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ptexport.runtime.errors import MissingExtraError, ProviderError, PtexportError
from ptexport.runtime.ort.elf import loads, needed_libraries, run_paths

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
_ASKED = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
_DRIVER = "libcuda.so.1"
_VERSIONED = {"libcublas": "CUDA", "libcudart": "CUDA", "libcudnn": "cuDNN", "libnvinfer": "TensorRT"}
"""Libraries whose number is that of the product. libcurand and others count on their own."""

_log = logging.getLogger("ptexport.runtime")

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """What a session is opened on.

    Attributes:
        name: ONNX Runtime's.
        device: number of the GPU; 0 on the CPU.
        options: of the provider.
        entries: of the session's configuration.
        cuda_graph: whether what a shape of batch runs is recorded once, and played back.
        degraded: why it is not what was hoped for; None: it is.
    """

    name: str = CPU
    device: int = 0
    options: Pairs = ()
    entries: Pairs = ()
    cuda_graph: bool = False
    degraded: str | None = field(default=None, compare=False)

    @property
    def device_type(self) -> str:
        """Where its values live, as ONNX Runtime names it."""
        return "cuda" if self.name in (CUDA, TENSORRT) else "cpu"

    def named(self) -> list[str | tuple[str, dict[str, str]]]:
        """Name it as an InferenceSession takes it; what TensorRT does not take may run on CUDA."""
        with_options: list[str | tuple[str, dict[str, str]]] = [(self.name, dict(self.options))]
        return [*with_options, (CUDA, cuda_options(self.device))] if self.name == TENSORRT else with_options


def load_onnxruntime() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as e:
        raise MissingExtraError("ONNX Runtime is not installed; pip install 'ptexport[cpu]' or 'ptexport[gpu]'") from e
    return onnxruntime  # type: ignore[no-any-return]


def choose_provider(asked: str, *, device: int = 0, cuda_graph: bool = False) -> Provider:
    """Find the provider that was asked for.

    Args:
        asked: "auto" (CUDA where it loads, else the CPU), "cpu", "cuda", "tensorrt", or ONNX Runtime's own name of
            another, which is given no options. TensorRT builds engines for minutes, so it is never a guess.
        device: number of the GPU.
        cuda_graph: see `Provider`.

    Raises:
        ProviderError: this ONNX Runtime was built without it, or a library it needs does not load.
    """
    available = load_onnxruntime().get_available_providers()
    if asked == "auto":
        return _automatic(available, device, cuda_graph)
    name = _ASKED.get(asked, asked)
    if name not in available:
        ours = ", ".join(("auto", *_ASKED))
        known = f"need {ours}, or one that it has: {', '.join(available)}"
        advice = "install another, such as 'ptexport[gpu]'" if name in _ASKED.values() else "choose one of these"
        got = f"{_onnxruntime()} was built without it" if name.endswith("ExecutionProvider") else "unknown"
        raise ProviderError(f"provider {asked}: {got}, {known}; {advice}")
    if name == CPU:
        return _on_cpu(asked, device, cuda_graph)
    if name not in (CUDA, TENSORRT):
        return replace(_on_cpu(asked, device, cuda_graph), name=name)
    lacking = lacking_libraries(name)
    if lacking:
        raise ProviderError(f"provider {asked}: {lacking}; install what is missing, or use provider cpu")
    return _on_gpu(name, device, cuda_graph)


def _on_cpu(asked: str, device: int, cuda_graph: bool) -> Provider:
    if device or cuda_graph:
        got = f"device {device}" if device else "cuda_graph"
        raise ProviderError(f"provider {asked}: got {got}, which is for cuda and tensorrt; leave it out")
    return Provider()


def _on_gpu(name: str, device: int, cuda_graph: bool) -> Provider:
    options = cuda_options(device) if name == CUDA else {"device_id": str(device)}
    if cuda_graph:
        options |= {"enable_cuda_graph": "1"} if name == CUDA else {"trt_cuda_graph_enable": "True"}
    return Provider(name=name, device=device, options=tuple(options.items()), cuda_graph=cuda_graph)


def _automatic(available: list[str], device: int, cuda_graph: bool) -> Provider:
    """Take CUDA where it loads; else the CPU, and say why if there is a GPU that goes unused, or may be."""
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
    """Name CUDA's options: full float32, as parity was measured, and no more memory than is asked for."""
    return {"device_id": str(device), "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}


def lacking_libraries(name: str) -> str | None:
    """Say which of the libraries that a provider needs do not load, and of which versions; None: all load."""
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
    """List the libraries that a provider's own was linked with; none where that cannot be told, as on Windows."""
    return needed_libraries(_library(name))


def _library(name: str) -> Path:
    short = name.removesuffix("ExecutionProvider").lower()
    return Path(str(load_onnxruntime().__file__)).parent / "capi" / f"libonnxruntime_providers_{short}.so"


def _product(library: str) -> str | None:
    """Name what a library belongs to: `libcudnn.so.9` to `cuDNN 9`."""
    if library == _DRIVER:
        return "an NVIDIA driver"
    parts = re.fullmatch(r"(\w+?)\.so\.(\d+)", library)
    product = _VERSIONED.get(parts[1]) if parts else None
    return f"{product} {parts[2]}" if product and parts else None


@functools.cache
def _preload(name: str) -> None:
    """Load what pip installed of a provider's libraries, so that the loader finds it; not run on a GPU yet.

    ONNX Runtime prints what it does not find, among answers of ours that another program may read: on stderr, then.
    """
    onnxruntime = load_onnxruntime()
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    if name == TENSORRT and importlib.util.find_spec("tensorrt_libs") is not None:
        importlib.import_module("tensorrt_libs")


def open_session(model: str, options: Any, provider: Provider) -> Any:
    """Open a session, and prove that it runs on the provider.

    Returns:
        An InferenceSession.

    Raises:
        ProviderError: it does not.
    """
    for key, value in provider.entries:
        options.add_session_config_entry(key, value)
    if provider.name != CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    onnxruntime = load_onnxruntime()
    with provider_errors(provider):
        session = onnxruntime.InferenceSession(model, options, providers=provider.named(), enable_fallback=0)
    got = session.get_providers()
    if got[0] != provider.name:
        raise ProviderError(
            f"provider {provider.name}: device {provider.device} cannot be used, and {_onnxruntime()} took {got[0]}; "
            "see what it printed, or use provider cpu"
        )
    if provider.name != CPU:
        check_placement(placement(session), provider)
    return session


@contextlib.contextmanager
def provider_errors(provider: Provider) -> Iterator[None]:
    """Turn what ONNX Runtime raises in the block into a ProviderError; our own errors pass.

    ONNX Runtime's exceptions have no common base, so all of its extension module's are listed.
    """
    state = load_onnxruntime().capi.onnxruntime_pybind11_state
    raised = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    try:
        yield
    except PtexportError:
        raise
    except (*raised, RuntimeError, ValueError) as e:
        advice = "export it for the CPU, or use another provider" if provider.name == CPU else "use provider cpu"
        raise ProviderError(f"provider {provider.name}: cannot run this graph ({said(e)}); {advice}") from e


def placement(session: Any) -> list[tuple[str, str]] | None:
    """List which provider each node was given to, with the node's operator; None: this version cannot tell (1.23 can).

    It is recorded where the session's configuration asks for it.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    parts = session.get_provider_graph_assignment_info()
    return [(part.ep_name, node.op_type) for part in parts for node in part.get_nodes()]


def check_placement(placed: Iterable[tuple[str, str]] | None, provider: Provider) -> None:
    """Check that all products and attention run on the provider; sizes and masks are computed on the CPU everywhere.

    Raises:
        ProviderError: some do not, or nothing does.
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
        raise ProviderError(f"provider {provider.name}: was given no node of the graph; use provider cpu")


def _onnxruntime() -> str:
    return f"onnxruntime {load_onnxruntime().__version__}"


def said(error: BaseException) -> str:
    """Shorten an error of ONNX Runtime, which begins with its own source files and may end with the driver's reason."""
    text = re.sub(r"^\S*/onnxruntime\S* [^:]*::\S+ ", "", " ".join(str(error).split()))
    return text if len(text) <= 300 else f"{text[:150]} … {text[-150:]}"
