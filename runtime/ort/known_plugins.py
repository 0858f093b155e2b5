"""The execution providers that come as plugins: what ptexport knows of each, installed or not.

A plugin is a wheel with a shared library that ONNX Runtime 1.23 and newer can load. Each has options of its own names.

Source: https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/
"""

from dataclasses import dataclass

from ptexport.runtime.bundle.manifest import TargetName

MODULE_PREFIX = "onnxruntime_ep_"
"""How the modules of plugins are called; the rest of the name, with hyphens, is the value of `--provider`."""

DEVICE_KINDS = ("cpu", "gpu", "npu")
BF16_TOLERANCE = 0.5
"""Largest difference of a golden row's logit in bf16, which has three digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPlugin:
    """What ptexport knows of a plugin.

    Attributes:
        name: value of `--provider`.
        module: its module, which has `get_library_path()` and `get_ep_name()`.
        wheel: its name on PyPI.
        options: options that every session gets, so that it computes in the graph's precision, as parity was measured.
        threads: name of its option for the number of CPUs; None: it has none.
        precision: name of its option for the precision of products; None: it has none.
        json_option: name of the option that takes all others as one JSON object by device; None: it takes them as such.
        target: export target of the graphs that it takes; None: it takes those of any target.
        tolerance: largest difference of a logit of the golden rows, unless the caller asks for products in bf16.
        hint: what to do if it lists no device.
    """

    name: str
    module: str
    wheel: str
    options: tuple[tuple[str, str], ...] = ()
    threads: str | None = None
    precision: str | None = None
    json_option: str | None = None
    target: TargetName | None = None
    tolerance: float = 0.05
    hint: str = "install the driver of its hardware"


KNOWN_PLUGINS = {
    plugin.name: plugin
    for plugin in (
        KnownPlugin(
            name="openvino",
            module="onnxruntime_ep_openvino",
            wheel="onnxruntime-ep-openvino",
            # Without the hint, processors with AMX compute in bf16.
            options=(("INFERENCE_PRECISION_HINT", "f32"),),
            precision="INFERENCE_PRECISION_HINT",
            threads="INFERENCE_NUM_THREADS",
            json_option="load_config",
            target="openvino",
            hint="it is for Intel's processors, GPUs and NPUs: install the driver of one",
        ),
        KnownPlugin(
            name="webgpu",
            module="onnxruntime_ep_webgpu",
            wheel="onnxruntime-ep-webgpu",
            hint="install the GPU's Vulkan driver and libvulkan.so.1; without a GPU, set "
            "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 to run Vulkan in software, which is for tests",
        ),
        KnownPlugin(
            name="tensorrt-rtx",
            module="onnxruntime_ep_nv_tensorrt_rtx",
            wheel="onnxruntime-ep-nv-tensorrt-rtx-cu13",
        ),
        KnownPlugin(name="mlx", module="onnxruntime_ep_mlx", wheel="onnxruntime-ep-mlx"),
        KnownPlugin(name="qnn", module="onnxruntime_qnn", wheel="onnxruntime-qnn"),
    )
}
