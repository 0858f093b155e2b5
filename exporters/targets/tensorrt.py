"""The operators that TensorRT's ONNX parser accepts, and the nodes of a graph that it rejects.

docs/tensorrt_operators.py makes the table from onnx-tensorrt's own, at the commit that the table names. A rejected node
is not an error in ONNX Runtime: it silently splits the graph, and runs the node on another provider.
"""

import functools
from importlib.resources import files

import msgspec
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

_TYPES = {
    ir.DataType.FLOAT: "FP32",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.INT8: "INT8",
    ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT64",
    ir.DataType.UINT8: "UINT8",
    ir.DataType.BOOL: "BOOL",
}


class Operator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of the parser for one operator.

    Attributes:
        types: accepted types of its data, by TensorRT's names.
        constants: inputs, by ONNX's names, that must be known when the engine is built.
        zeros: inputs, by ONNX's names, that must be 0.
    """

    types: frozenset[str]
    constants: list[str]
    zeros: list[str]


class OperatorTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Operators that the parser accepts.

    Attributes:
        source: address of the table, with its commit.
        tensorrt: version of TensorRT.
        opsets: first and last accepted opset.
        operators: by name; the parser rejects any other.
    """

    source: str
    tensorrt: str
    opsets: tuple[int, int]
    operators: dict[str, Operator]


@functools.cache
def tensorrt_operators() -> OperatorTable:
    """Read the table."""
    data = (files("ptexport.exporters.targets") / "tensorrt_operators.json").read_bytes()
    return msgspec.json.decode(data, type=OperatorTable)


def not_for_tensorrt(model: ir.Model) -> list[str]:
    """List why the parser rejects nodes, one line per reason; empty: it accepts all. Infers missing types."""
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    table = tensorrt_operators()
    opset = model.opset_imports[""]
    first, last = table.opsets
    why = {} if first <= opset <= last else {f"opset {opset}: not in {first} to {last}": None}
    for node in model.graph.all_nodes():
        why.update(dict.fromkeys(_objections(node, table.operators, opset)))
    return list(why)


def _objections(node: ir.Node, operators: dict[str, Operator], opset: int) -> list[str]:
    if node.domain not in ("", "ai.onnx"):
        return [f"{node.domain}::{node.op_type}: not a standard operator"]
    operator = operators.get(node.op_type)
    if operator is None:
        return [f"{node.op_type}: not supported"]
    why = []
    names = [parameter.name for parameter in onnx.defs.get_schema(node.op_type, opset).inputs]
    given = dict(zip(names, node.inputs, strict=False))
    for name in operator.constants:
        value = given.get(name)
        if value is not None and ir.convenience.get_const_tensor(value) is None:
            why.append(f"{node.op_type}: its {name} are not constant")
    for name in operator.zeros:
        value = given.get(name)
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if value is not None and (tensor is None or tensor.numpy().any()):
            why.append(f"{node.op_type}: its {name} is not 0")
    # The type of a node is that of its data: of Where its second input; of nodes without inputs their output.
    data = node.inputs[1 if node.op_type == "Where" else 0] if node.inputs else node.outputs[0]
    dtype = None if data is None else data.dtype
    got = "unknown type" if dtype is None else _TYPES.get(dtype, dtype.name)
    if got not in operator.types:
        why.append(f"{node.op_type}: of {got}, need {', '.join(sorted(operator.types))}")
    return why
