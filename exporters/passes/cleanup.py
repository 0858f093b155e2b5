"""Removes what a baked graph no longer needs: intermediate shapes, dead nodes and constants."""

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


class ForgetIntermediateShapesPass(ir.passes.InPlacePass):
    """Drop the shapes that the trace wrote on intermediate values.

    They name the sizes of inputs that baking makes constants; ONNX Runtime infers them again when it loads the graph.

    Requires: nothing.
    Ensures: no value but the graph's own inputs, outputs and constants has a shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0

    @property
    def did(self) -> str:
        """What the manifest says."""
        return f"shapes of {self.dropped} values dropped"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop them."""
        outputs = set(model.graph.outputs)
        for node in model.graph.all_nodes():
            for value in node.outputs:
                if value not in outputs and value.shape is not None:
                    value.shape = None
                    self.dropped += 1
        return ir.passes.PassResult(model, modified=self.dropped > 0)


class DeadCodePass(ir.passes.InPlacePass):
    """Remove nodes and constants that no output needs.

    Requires: nothing.
    Ensures: what is left reaches an output; the weights file keeps its bytes, which bundles of a backbone share.
    """

    def __init__(self) -> None:
        super().__init__()
        self.removed = 0

    @property
    def did(self) -> str:
        """What the manifest says."""
        return f"{self.removed} nodes removed"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove them."""
        before = len(model.graph)
        modified = RemoveUnusedNodesPass()(model).modified
        self.removed = before - len(model.graph)
        return ir.passes.PassResult(model, modified=modified)
