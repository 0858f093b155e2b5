"""model.onnx -> the EP-context model of its TensorRT RTX engine.

An EP-context model has one node, which names the file of an engine. ONNX Runtime opens any file that such a node names,
so a bundle's EP-context model must be, byte for byte, the one that this module makes of its `model.onnx`. The inputs
are those of `model.onnx`, the task arrays among them.

Sources: https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html; field numbers from onnx/onnx.proto;
attributes from src/onnx_ctx_model_helper.cc of NVIDIA/TensorRT-RTX-EP-ABI.
"""

from ptexport.runtime.bundle.protobuf import BYTES, VARINT, WireField, delimited, fields, varint
from ptexport.runtime.errors import BundleError

TENSORRT_RTX = "NvTensorRTRTXExecutionProvider"
"""ONNX Runtime's name of the execution provider that runs the engine."""

_IR_VERSION = 10
_OPSETS = (("", 18), ("com.microsoft", 1))
_GRAPH = 7  # of ModelProto
_INPUT, _OUTPUT = 11, 12  # of GraphProto
_INT, _STRING = 2, 3  # as AttributeProto.AttributeType


def engine_model(model: bytes, where: str, engine: str) -> bytes:
    """Make the EP-context model of an engine.

    Args:
        model: content of the model file that the engine was built from.
        where: name of that file, for messages.
        engine: name of the engine's file, beside the EP-context model.

    Raises:
        BundleError: the model file is not an ONNX model.
    """
    try:
        (graph,) = (field for field in fields(model, 0, len(model)) if field.number == _GRAPH)
        parts = list(fields(model, graph.content, graph.end))
        inputs, outputs = ([part for part in parts if part.number == number] for number in (_INPUT, _OUTPUT))
        names = [[_name(model, value) for value in values] for values in (inputs, outputs)]
    except ValueError as e:
        raise BundleError(f"{where}: not an ONNX model ({e}); copy the bundle again") from e
    attributes = (
        _integer("main_context", 0),
        _integer("embed_mode", 0),
        _text("ep_cache_context", engine),
        _text("source", TENSORRT_RTX),
        _text("partition_name", "engine"),
    )
    node = (
        b"".join(delimited(1, name) for name in names[0])
        + b"".join(delimited(2, name) for name in names[1])
        + delimited(3, b"engine")
        + delimited(4, b"EPContext")
        + b"".join(delimited(5, attribute) for attribute in attributes)
        + delimited(7, b"com.microsoft")
    )
    values = b"".join(model[value.start : value.end] for value in (*inputs, *outputs))
    opsets = (delimited(1, domain.encode()) + _number(2, version) for domain, version in _OPSETS)
    return (
        _number(1, _IR_VERSION)
        + delimited(_GRAPH, delimited(1, node) + delimited(2, b"engine") + values)
        + b"".join(delimited(8, opset) for opset in opsets)
    )


def _name(model: bytes, value: WireField) -> bytes:
    """Return the name of a ValueInfoProto."""
    found = [f for f in fields(model, value.content, value.end) if f.number == 1 and f.wire_type == BYTES]
    if len(found) != 1:
        raise ValueError("an input or output has no name")
    return model[found[0].content : found[0].end]


def _number(number: int, value: int) -> bytes:
    return varint(number << 3 | VARINT) + varint(value)


def _integer(name: str, value: int) -> bytes:
    return delimited(1, name.encode()) + _number(3, value) + _number(20, _INT)


def _text(name: str, value: str) -> bytes:
    return delimited(1, name.encode()) + delimited(4, value.encode()) + _number(20, _STRING)
