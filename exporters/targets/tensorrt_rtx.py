"""TensorRT RTX: its parser's word on a graph, and engines, built without a GPU. Needs the extra `tensorrt-rtx`.

Built here, not run on such a card yet. An engine is built for named compute capabilities; TensorRT RTX compiles its
kernels on the card. One engine serves several capabilities.

Source: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/_static/python-api/index.html
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptexport.runtime.bundle.manifest import ShapeRange
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.errors import ExportError, MissingExtraError

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT RTX 1.7 builds for: Turing, Ampere, Ada, Blackwell and DGX Spark."""

_SHOWN, _LONGEST = 3, 300  # errors in a message, and characters of each


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An engine in memory.

    Attributes:
        content: the engine, a buffer.
        layers: layers of the network that it was built from.
    """

    content: Any
    layers: int


def read_capabilities(text: str) -> tuple[str, ...]:
    """Read compute capabilities such as `89,120` or `8.9,12.0`, in ascending order.

    Raises:
        ExportError: one is unknown, or there is none.
    """
    found = []
    for part in text.split(","):
        number = re.sub(r"^(?:sm_?)?(\d+?)\.?(\d)$", r"\1.\2", part.strip().lower())
        if number not in CAPABILITIES:
            need = ", ".join(name.replace(".", "") for name in CAPABILITIES)
            raise ExportError(f"compute capability: got {part.strip()!r}, need some of {need}; name those of the cards")
        found.append(number)
    return tuple(name for name in CAPABILITIES if name in found)


def load_tensorrt_rtx() -> Any:
    """Import TensorRT RTX, and return its module.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import tensorrt_rtx
    except ImportError as e:
        raise MissingExtraError("TensorRT RTX is not installed; pip install 'ptexport[tensorrt-rtx]'") from e
    return tensorrt_rtx


def refusals(model: Path) -> list[str]:
    """List the first reasons why TensorRT RTX's parser refuses a graph, task arrays as inputs; empty: it takes it.

    Raises:
        MissingExtraError: TensorRT RTX is not installed.
    """
    return _Network(load_tensorrt_rtx(), model).refusals


def build(model: Path, capabilities: Sequence[str], profile: Mapping[str, ShapeRange]) -> Built:
    """Build an engine: seconds to minutes, in one thread.

    Args:
        model: a model file with its weights beside it. Its overridable initializers become inputs of the engine.
        capabilities: some of `CAPABILITIES`.
        profile: sizes by name of the input, task arrays included.

    Raises:
        MissingExtraError: TensorRT RTX is not installed.
        ExportError: the parser refuses the graph, or no engine comes out.
    """
    rtx = load_tensorrt_rtx()
    network = _Network(rtx, model)
    if network.refusals:
        raise ExportError(
            f"target tensorrt-rtx: its parser refuses {'; '.join(network.refusals)}; choose another target, or report "
            "the model"
        )
    config = network.builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for number, name in enumerate(capabilities):
        config.set_compute_capability(getattr(rtx.ComputeCapability, f"SM{name.replace('.', '')}"), number)
    sizes = network.builder.create_optimization_profile()
    for name, of in profile.items():
        sizes.set_shape(name, tuple(of.least), tuple(of.usual), tuple(of.most))
    config.add_optimization_profile(sizes)
    content = network.builder.build_serialized_network(network.network, config)
    if content is None:
        said = "; ".join(error[:_LONGEST] for error in network.log.errors[-_SHOWN:]) or "it gives no reason"
        raise ExportError(f"target tensorrt-rtx: no engine was built ({said}); choose another target or precision")
    return Built(content=content, layers=network.network.num_layers)


class _Network:
    """A graph in TensorRT RTX's own form.

    Attributes:
        builder: makes engines.
        network: the graph.
        refusals: why the parser refuses parts of it.
        log: what TensorRT RTX said.
    """

    def __init__(self, rtx: Any, model: Path) -> None:
        file = OnnxFile.parse(model.read_bytes(), str(model))
        self.log = _log_of(rtx)
        self.builder = rtx.Builder(self.log)
        # Strongly typed: each operator computes in the precision that the graph states.
        self.network = self.builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = rtx.OnnxParser(self.network, self.log)
        # The parser would make an initializer a constant, even if it is an input too.
        taken = parser.parse(file.with_arrays({}), str(model))
        self.refusals = [_described(parser.get_error(i)) for i in range(parser.num_errors)][:_SHOWN]
        if not taken and not self.refusals:
            self.refusals = ["the graph, and gives no reason"]


def _described(error: Any) -> str:
    name = f"{error.node_operator()} {error.node_name()}".strip()
    return f"{name}: {error.desc()}" if name else str(error.desc())


def _log_of(rtx: Any) -> Any:
    """Make a logger that keeps errors for messages and prints nothing."""

    class Log(rtx.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (rtx.ILogger.Severity.INTERNAL_ERROR, rtx.ILogger.Severity.ERROR):
                self.errors.append(" ".join(message.split()))

    return Log()
