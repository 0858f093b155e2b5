"""The bundle's own graph in OpenVINO instead of ONNX Runtime; without torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptexport.runtime.bundle.folder import MANIFEST, MODEL, WEIGHTS, Bundle
from ptexport.runtime.engine.task_encoders import TaskEncoders
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.errors import BenchError, reason

if TYPE_CHECKING:
    from ptexport.toolkit.bench.systems.case import Case
    from ptexport.toolkit.bench.workers import Hardware

_DEVICE = "CPU"


class OpenVino:
    """A bundle's graph, compiled by OpenVINO for the CPU.

    Args:
        case: not used.
        folder: the bundle.
        hardware: hardware to run on.
        precision: what it computes in: "f32", that is the graph's precision, or "bf16".
    """

    def __init__(self, case: "Case | None", folder: Path, hardware: "Hardware", precision: str = "f32") -> None:
        if hardware.provider != "cpu":
            raise BenchError("openvino: is measured on CPUs only; leave it out, or use --provider cpu")
        import openvino

        core = openvino.Core()
        capabilities = core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in capabilities:
            got = f"a processor with {', '.join(capabilities)}"
            raise BenchError(f"openvino-bf16: got {got}, need BF16; leave it out")
        bundle = Bundle.open(folder)
        settings = {
            "INFERENCE_NUM_THREADS": hardware.threads,
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            self._compiled: Any = core.compile_model(folder / MODEL, _DEVICE, settings)
        except RuntimeError as e:
            raise BenchError(f"openvino: cannot run {folder} ({reason(e)}); leave it out") from e
        (self._encoder,) = TaskEncoders.open(bundle).of_task
        self._request = self._compiled.create_infer_request()
        self._inputs = [names for port in self._compiled.inputs for names in port.get_names()]
        graph = bundle.manifest.graph
        self.setting = (
            f"OpenVINO {openvino.__version__.split('-')[0]}, {'bf16' if precision == 'bf16' else graph.precision}"
        )
        self.files = [folder / MANIFEST, *(folder / name for name in bundle.manifest.files)]
        self.task_files = [path for path in self.files if path.name != WEIGHTS]

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Compute the logits of texts."""
        ids = TextEncoder.pad(self._encoder.encode(texts))
        (output,) = self._request.infer({name: ids[name] for name in self._inputs}).values()
        logits: list[list[float]] = output.reshape(len(texts), -1).tolist()
        return logits


SYSTEM = OpenVino
