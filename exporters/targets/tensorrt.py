"""What TensorRT's ONNX parser takes, and what of a graph it would not; knows nothing of tasks or files.

The table is made by docs/tensorrt_operators.py of onnx-tensorrt's own, at the commit it names. A node that the parser
does not take is no error there: ONNX Runtime quietly splits the graph, and the rest runs elsewhere.
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
    """What the parser takes of one operator.

    Attributes:
        types: of its data, as TensorRT names them.
        constants: inputs, by the specification's names, that must be known when the engine is built.
        zeros: inputs that must be 0.
    """

    types: frozenset[str]
    constants: list[str]
    zeros: list[str]


class OperatorTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the parser takes.

    Attributes:
        source: the table's address, with its commit.
        tensorrt: the version it is of.
        opsets: the first and the last.
        operators: by name; those that are missing are not taken.
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
    """Say of each kind of node why the parser would not take it; empty: it takes all. Types are inferred and kept."""
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
    # The type of a node is its data's: of Where, what it chooses between; of those without inputs, what they give.
    data = node.inputs[1 if node.op_type == "Where" else 0] if node.inputs else node.outputs[0]
    dtype = None if data is None else data.dtype
    got = "unknown type" if dtype is None else _TYPES.get(dtype, dtype.name)
    if got not in operator.types:
        why.append(f"{node.op_type}: of {got}, need {', '.join(sorted(operator.types))}")
    return why
