"""What is asked for runs, or it raises: with the real onnxruntime-gpu wheel on a machine without a GPU."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import BundleError, ProviderError
from ptexport.runtime.ort import execution, graph, providers
from ptexport.runtime.ort.cuda_driver import read_gpu
from ptexport.runtime.ort.elf import loads, needed_libraries, run_paths
from ptexport.runtime.ort.io_binding import Buffers
from ptexport.runtime.ort.providers import (
    CPU,
    CUDA,
    TENSORRT,
    Provider,
    check_placement,
    choose_provider,
    open_session,
    provider_errors,
)

no_gpu = pytest.mark.skipif(
    loads("libcuda.so.1") or CUDA not in onnxruntime.get_available_providers(),
    reason="is for onnxruntime-gpu where there is no driver; where there is one, run 'ptexport doctor --run BUNDLE'",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MatMul by itself."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "g", shape[:1], shape[1:])
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    )
    return str(path)


def raw(model: str, names: list[str], *, entry: str | None = None, policy: Any = None, **options: Any) -> list[str]:
    """Open a session as people do; returns what runs it."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    if entry is not None:
        settings.add_session_config_entry(entry, "1")
    if policy is not None:
        settings.set_provider_selection_policy(policy)
        names = None  # type: ignore[assignment]
    got: list[str] = onnxruntime.InferenceSession(model, settings, providers=names, **options).get_providers()
    return got


@no_gpu
@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize(
    ("call", "silent"),
    [
        ({"names": [CUDA]}, True),
        ({"names": [CUDA], "enable_fallback": 0}, True),
        ({"names": [TENSORRT, CUDA, CPU]}, True),
        ({"names": [TENSORRT], "enable_fallback": 0}, False),
        ({"names": [CUDA], "entry": "session.disable_cpu_ep_fallback"}, False),
        ({"names": [CUDA, CPU], "entry": "session.disable_cpu_ep_fallback"}, False),
        ({"names": ["NoSuchExecutionProvider"]}, True),
        ({"names": [], "policy": onnxruntime.OrtExecutionProviderDevicePolicy.PREFER_GPU}, True),
    ],
)
def test_control_what_onnxruntime_does_by_itself(call: dict[str, Any], silent: bool, model: str) -> None:
    """Five of eight ways to ask for a GPU end on the CPU without an error; should that change, so may we."""
    if silent:
        assert raw(model, **call) == [CPU]
    else:
        with pytest.raises(Exception, match=r"Error|FAIL|INVALID|TensorRT|Fallback"):
            raw(model, **call)


@no_gpu
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("cuda", r"libcublasLt\.so\.\d+.* cannot be loaded, and onnxruntime .* needs CUDA \d+.* an NVIDIA driver"),
        (
            "tensorrt",
            r"got overridable initializers, provider tensorrt needs constants; export it with --target tensorrt",
        ),
        (CUDA, r"provider CUDAExecutionProvider: libcublasLt"),
        (
            "NoSuchExecutionProvider",
            r"was built without it, need auto, cpu, cuda, tensorrt, a plugin \(openvino, ",
        ),
        ("OpenVINOExecutionProvider", r"provider OpenVINO.* was built without it"),
        ("gpu", r"provider gpu: unknown, need auto, cpu"),
    ],
)
def test_what_cannot_run_raises(asked: str, message: str, llama_bundle: Path) -> None:
    with pytest.raises(ProviderError, match=message):
        Engine.open(llama_bundle, provider=asked)


@no_gpu
@pytest.mark.parametrize("name", [CUDA, TENSORRT, "NoSuchExecutionProvider"])
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_what_did_not_open_raises_even_if_all_libraries_load(name: str, model: str) -> None:
    """What a GPU that is too old or too new does: nothing is missing, and ONNX Runtime takes the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(ProviderError, match=r"cannot be used, and onnxruntime .* took CPU|cannot run this graph \("):
        open_session(model, options, Provider(name=name))


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("ptexport.runtime"), logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(before)


@no_gpu
def test_auto_says_why_it_is_on_the_cpu(
    llama_bundle: Path, logged: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = Engine.open(llama_bundle).info
    assert info.provider == CPU
    assert info.degraded is not None
    assert "libcublasLt" in info.degraded
    assert logged[0].getMessage().startswith("provider auto: uses the CPU, since libcublasLt")
    assert {record.levelname for record in logged} == {"INFO"}, "no driver: no GPU goes unused"
    monkeypatch.setattr(providers, "_preload", lambda name: None)
    monkeypatch.setattr(providers, "loads", lambda name, folders=(): "cublas" not in name)
    logged.clear()
    assert choose_provider("auto").degraded is not None
    assert {record.levelname for record in logged} == {"WARNING"}, "the driver is there"


@no_gpu
def test_auto_takes_the_cpu_when_cuda_turns_out_not_to_run(llama_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_preload", lambda name: None)
    monkeypatch.setattr(providers, "loads", lambda name, folders=(): True)
    engine = Engine.open(llama_bundle)
    assert engine.info.provider == CPU
    assert "took CPUExecutionProvider" in str(engine.info.degraded)
    with pytest.raises(ProviderError, match="took CPUExecutionProvider"):
        Engine.open(llama_bundle, provider="cuda")


def test_the_cpu_that_was_asked_for_is_not_degraded(llama_bundle: Path) -> None:
    info = Engine.open(llama_bundle, provider="cpu", threads=1).info
    assert (info.provider, info.degraded, info.device, info.threads, info.placement) == (CPU, None, 0, 1, None)
    assert 0 < info.golden_max_abs_diff < 1e-4
    assert info.versions["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize(
    ("options", "message"), [({"device": 1}, "device 1, which is for cuda"), ({"cuda_graph": True}, "cuda_graph")]
)
def test_what_is_for_a_gpu_is_refused_on_the_cpu(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProviderError, match=message):
        choose_provider("cpu", **options)


def test_products_elsewhere_are_refused() -> None:
    cuda = Provider(name=CUDA)
    check_placement([(CUDA, "MatMul"), (CPU, "Gather"), (CPU, "Shape")], cuda)
    check_placement(None, cuda)  # a version that cannot tell
    for op_type in ("MatMul", "Attention", "Gemm", "MatMulNBits", "FusedMatMul"):
        with pytest.raises(ProviderError, match=f"does not run the whole graph: 2 {op_type} on CPUExecutionProvider"):
            check_placement([(CUDA, "MatMul"), (CPU, op_type), (CPU, op_type)], cuda)
    with pytest.raises(ProviderError, match="got no node"):
        check_placement([(CPU, "Gather")], cuda)


_SIGNATURE = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:{} std::conditional_t<THRW, void, "
    "onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, SUCCTYPE, const char*, "
    "const char*, int) [with ERRTYPE = cudaError; bool THRW = true; SUCCTYPE = cudaError; "
    "std::conditional_t<THRW, void, common::Status> = void] "
)
_NODE = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. Name:'node_MatMul_84' "
    "Status Message: "
)
_PLACE = " ; GPU=0 ; hostname=box ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/{} ; line=355 ; expr="


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            _SIGNATURE.format(154)
            + _SIGNATURE.format(146)
            + "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"
            + _PLACE.format("cuda_execution_provider.cc")
            + "cudaSetDevice(info_.device_id); \n\n",
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version in cudaSetDevice",
        ),
        (
            _NODE
            + "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED"
            + _PLACE.format("math/matmul.cc")
            + "cublasGemmHelper( GetCublasHandle(ctx), transB, transA, static_cast<int>(helper.N()), "
            "static_cast<int>(helper.M()), static_cast<int>(helper.K()), &alpha, right, ldb, left, lda, UseTF32()); ",
            _NODE + "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED in cublasGemmHelper",
        ),
        ("/onnxruntime_src/onnxruntime/core/x.cc:35 onnxruntime::Make(int) no such thing", "no such thing"),
    ],
)
def test_an_error_of_cuda_keeps_its_reason(message: str, said: str) -> None:
    """Messages of onnxruntime 1.31.1, whose reason stands behind up to 800 characters."""
    assert providers.shorten_error(RuntimeError(message)) == said


def test_the_placement_is_what_onnxruntime_says(model: str) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(model, options, providers=[CPU])
    assert providers.placement(session) == [(CPU, "MatMul")]
    with pytest.raises(ProviderError, match="1 MatMul on CPUExecutionProvider"):
        check_placement(providers.placement(session), Provider(name=CUDA))


def test_a_library_names_what_it_needs(tmp_path: Path) -> None:
    assert "libc.so.6" in needed_libraries(Path(np._core._multiarray_umath.__file__))
    assert run_paths(Path(np._core._multiarray_umath.__file__)) != [], "a wheel that brings its own BLAS"
    (tmp_path / "text").write_bytes(b"no library")
    assert needed_libraries(tmp_path / "text") == []
    assert loads("libc.so.6")
    assert not loads("libc.so.600")


class PlayedDriver:
    """Answers as libcuda does; `fails` names a function that does not."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            if name == self.fails:
                return 101  # CUDA_ERROR_INVALID_DEVICE
            if name == "cuDeviceGetName":
                arguments[0].value = b"Orin"
            elif name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 7}[arguments[1]]
            elif name in ("cuDeviceTotalMem_v2", "cuDriverGetVersion"):
                arguments[0]._obj.value = {"cuDeviceTotalMem_v2": 8 << 30, "cuDriverGetVersion": 12060}[name]
            return 0

        return function


def test_a_gpu_is_described() -> None:
    gpu = read_gpu(0, PlayedDriver())
    assert (gpu.name, gpu.compute_capability, gpu.memory_bytes, gpu.driver_cuda) == ("Orin", "8.7", 8 << 30, "12.6")
    with pytest.raises(ProviderError, match="GPU 3: cuDeviceGet failed with CUDA error 101; choose another device"):
        read_gpu(3, PlayedDriver("cuDeviceGet"))


@no_gpu
def test_tensorrt_names_what_is_missing() -> None:
    with pytest.raises(ProviderError, match=r"libnvinfer\.so\.\d+.* needs CUDA \d+, TensorRT \d+, cuDNN \d+; install"):
        choose_provider("tensorrt")
    with pytest.raises(ProviderError, match=r"cuda_graph: libcublasLt"):
        choose_provider("auto", cuda_graph=True)


@no_gpu
def test_no_driver_is_said() -> None:
    with pytest.raises(ProviderError, match=r"GPU 0: libcuda.* install an NVIDIA driver"):
        read_gpu(0)


def test_without_cuda_in_the_wheel_a_driver_is_a_reason(
    logged: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime_ = SimpleNamespace(__version__="1.31.1", get_available_providers=lambda: [CPU])
    monkeypatch.setattr(providers, "load_onnxruntime", lambda: onnxruntime_)
    for driver in (False, True):
        monkeypatch.setattr(providers, "loads", lambda name, driver=driver: driver)
        degraded = choose_provider("auto").degraded
        assert degraded == ("onnxruntime 1.31.1 was built without CUDAExecutionProvider" if driver else None)
        with pytest.raises(ProviderError, match=r"device 1: onnxruntime 1\.31\.1 was built"):
            choose_provider("auto", device=1)
    assert [record.levelname for record in logged] == ["WARNING"]


@pytest.mark.parametrize(
    "options", [{"build": "Never"}, {"threads": 0}, {"threads": -1}, {"device": -1}, {"threads": "2"}]
)
def test_odd_values_are_refused(options: dict[str, Any], llama_bundle: Path) -> None:
    with pytest.raises(
        ProviderError,
        match=r"need one of allowed, never|need a whole number of at least|need cpu, gpu, npu, or a number from 0",
    ):
        Engine.open(llama_bundle, **options)


def test_recordings_are_of_one_engine(llama_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is shared would play back what another engine recorded, on its prompt."""
    played = Provider(name="AnotherExecutionProvider", cuda_graph=True)
    monkeypatch.setattr(execution, "choose_provider", lambda *_, **__: played)
    monkeypatch.setattr(
        graph, "open_session", lambda model, options, provider: onnxruntime.InferenceSession(model, options)
    )
    keep = [Engine.open(llama_bundle) for _ in range(2)]
    assert len({id(engine._state.get().graph.session) for engine in keep}) == 2
    monkeypatch.setattr(execution, "choose_provider", lambda *_, **__: replace(played, cuda_graph=False))
    keep = [Engine.open(llama_bundle) for _ in range(2)]
    assert len({id(engine._state.get().graph.session) for engine in keep}) == 1, "the control"


@pytest.fixture
def played_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Play CUDA with the CPU provider: sessions open, and values stay in this machine's memory."""
    monkeypatch.setattr(execution, "choose_provider", lambda *_, **__: Provider(name=CUDA))
    monkeypatch.setattr(Provider, "device_type", "cpu")
    monkeypatch.setattr(
        graph, "open_session", lambda model, options, _: onnxruntime.InferenceSession(model, options, providers=[CPU])
    )


@pytest.mark.usefixtures("played_cuda")
def test_a_provider_that_cannot_load_degrades_under_auto_only(
    llama_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU that this wheel has no kernels for."""
    opens = graph.open_session

    def fails(model: str, options: Any, provider: Provider) -> Any:
        with provider_errors(provider):
            if provider.name == CPU:
                return opens(model, options, provider)
            raise RuntimeError("CUDA error cudaErrorNoKernelImageForDevice")

    monkeypatch.setattr(graph, "open_session", fails)
    with pytest.raises(ProviderError, match=r"cannot run this graph \(CUDA error cudaErrorNoKernelImage"):
        Engine.open(llama_bundle, provider="cuda")
    info = Engine.open(llama_bundle, provider="auto").info
    assert (info.provider, "cudaErrorNoKernelImage" in str(info.degraded)) == (CPU, True)


@pytest.mark.usefixtures("played_cuda")
@pytest.mark.parametrize("asked", ["auto", "cuda"])
@pytest.mark.parametrize("fault", ["wrong logits", "a run that fails"])
def test_wrong_golden_rows_and_failing_runs_raise_under_auto_too(
    fault: str, asked: str, llama_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a provider that cannot load may degrade: what loads and computes otherwise must not go unseen."""
    assert Engine.open(llama_bundle, provider=asked)._state.get().graph.provider.name == CUDA, "the control"
    run = Buffers.run

    def wrong(self: Buffers, ids: Any) -> Any:
        if fault == "a run that fails":
            raise RuntimeError("CUDA error cudaErrorLaunchFailure")
        return run(self, ids) + 1

    monkeypatch.setattr(Buffers, "run", wrong)
    kind, message = {
        "wrong logits": (BundleError, "a logit of its golden rows differs by 1, need at most 0.05"),
        "a run that fails": (ProviderError, r"CUDAExecutionProvider: cannot run this graph \(CUDA error cudaErrorLau"),
    }[fault]
    with pytest.raises(kind, match=message):
        Engine.open(llama_bundle, provider=asked)


@pytest.mark.parametrize(("option", "ours"), [("device_id", "--device"), ("enable_cuda_graph", "--cuda-graph")])
def test_what_the_engine_relies_on_is_no_option(option: str, ours: str) -> None:
    with pytest.raises(ProviderError, match=f"got the option {option}, need none, since {ours} sets it; use that"):
        choose_provider("cuda", options={option: "1"})
