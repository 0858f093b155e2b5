"""Products by role -> the cost of lowering each role, and its recipe; knows logits, nothing of labels.

A role is a weight's name with `*` for the number of the layer: `base.layers.*.mlp.down_proj.weight`. Its cost is
measured on the whole graph with that role alone lowered, since the error of a single product does not show how later
layers amplify it.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptexport.exporters.precision.observe import observe
from ptexport.exporters.precision.quantize import Product, Range, Recipe, quantize
from ptexport.runtime.bundle.folder import MODEL
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.io_binding import Ids

_PROBED = "probed.onnx"  # a temporary file, beside the weights that it shares with the graph

FIRST: dict[str, Recipe] = {"int8": "row", "int4": "int4-blocks"}
"""Recipe of products by precision, unless only standard operators may be used."""


def roles(products: Iterable[Product]) -> dict[str, list[Product]]:
    """Group products by role, in order."""
    found: dict[str, list[Product]] = {}
    for product in products:
        found.setdefault(re.sub(r"\d+", "*", product.weight), []).append(product)
    return found


def find_ranges(folder: Path, products: Iterable[Product], batches: Iterable[Ids]) -> dict[str, Range]:
    """Find the ranges of the values that products multiply, by the value's name.

    Args:
        folder: holds the float32 graph.
        products: products of that graph.
        batches: rows without padding, which would widen a range.
    """
    ranges: dict[str, Range] = {}
    for values in observe(folder, {product.taken for product in products}, batches):
        for name, array in values.items():
            ranges[name] = ranges.get(name, Range(lowest=0.0, highest=0.0)).joined(array)
    return ranges


def measure_costs(
    folder: Path, by_role: Mapping[str, Sequence[Product]], recipe: Recipe, ranges: Mapping[str, Range], ids: Ids
) -> dict[str, float]:
    """Measure how lowering each role alone changes the logits.

    Args:
        folder: holds the float32 graph; a temporary file is written there.
        by_role: products of that graph.
        recipe: recipe of the lowered products.
        ranges: ranges of the values that they multiply.
        ids: a batch of rows.

    Returns:
        Mean difference of a logit, by role, the largest first.
    """
    expected = Graph.open(folder / MODEL).run(ids)
    costs = {}
    for role, products in by_role.items():
        model = quantize(folder / MODEL, {product.node: recipe for product in products}, ranges)
        costs[role] = float(np.abs(_run(model, folder, ids) - expected).mean())
    return dict(sorted(costs.items(), key=lambda item: -item[1]))


def _run(model: ir.Model, folder: Path, ids: Ids) -> NDArray[np.float32]:
    ir.save(model, folder / _PROBED)
    try:
        return Graph.open(folder / _PROBED).run(ids)
    finally:
        (folder / _PROBED).unlink()


def plans(precision: str, costs: Mapping[str, float], *, standard: bool) -> list[dict[str, Recipe]]:
    """List recipes by role to try, the fastest first and the most precise last.

    Args:
        precision: int8 or int4.
        costs: result of `measure_costs`.
        standard: whether only ONNX's own operators may be used.
    """
    if standard:
        untame = not_tame(costs)
        return [{role: "fp32" if role in untame else "range" for role in costs}]
    first = FIRST[precision]
    half = math.ceil(len(costs) / 2)
    in_blocks = [list(costs)[:n] for n in dict.fromkeys((0, half, len(costs)) if first == "row" else (0,))]
    return [{role: "int8-blocks" if role in some else first for role in costs} for some in in_blocks]


def not_tame(costs: Mapping[str, float]) -> list[str]:
    """Find the roles that cost more than all cheaper roles together, such as those with massive activations.

    Costs are added as independent errors, by their squares.
    """
    found = []
    ordered = sorted(costs.items(), key=lambda item: -item[1])
    for i, (role, cost) in enumerate(ordered[:-1]):
        if cost <= math.hypot(*(other for _, other in ordered[i + 1 :])):
            break
        found.append(role)
    return found
