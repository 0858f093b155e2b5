"""Removes intermediate shapes, unused nodes and unused constants from a baked graph."""

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


class ForgetIntermediateShapesPass(ir.passes.InPlacePass):
    """Drop the shapes that the trace wrote on intermediate values.

    They refer to sizes of inputs that became constants. ONNX Runtime infers shapes when it loads the graph.

    Requires: nothing.
    Ensures: only the graph's inputs, outputs and constants have a shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0

    @property
    def did(self) -> str:
        """One sentence for the manifest."""
        return f"shapes of {self.dropped} values dropped"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop the shapes."""
        outputs = set(model.graph.outputs)
        for node in model.graph.all_nodes():
            for value in node.outputs:
                if value not in outputs and value.shape is not None:
                    value.shape = None
                    self.dropped += 1
        return ir.passes.PassResult(model, modified=self.dropped > 0)


class DeadCodePass(ir.passes.InPlacePass):
    """Remove nodes and constants that no output depends on.

    Requires: nothing.
    Ensures: an output depends on every node; the weights file, which bundles of a backbone share, is unchanged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.removed = 0

    @property
    def did(self) -> str:
        """One sentence for the manifest."""
        return f"{self.removed} nodes removed"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove unused nodes."""
        before = len(model.graph)
        modified = RemoveUnusedNodesPass()(model).modified
        self.removed = before - len(model.graph)
        return ir.passes.PassResult(model, modified=modified)
