"""Products by role -> what lowering each role costs, and so how it is computed; knows logits, nothing of labels.

A role is what products of all layers share: `base.layers.*.mlp.down_proj.weight`. Its cost is measured on the whole
graph with that role alone lowered: the error of a single product says little of what the layers behind make of it.
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

_PROBED = "probed.onnx"  # beside the weights that it shares with the graph, while it is run

FIRST: dict[str, Recipe] = {"int8": "row", "int4": "int4-blocks"}
"""By precision: how products are computed, unless only standard operators may be."""


def roles(products: Iterable[Product]) -> dict[str, list[Product]]:
    """Group products by their weights' names without numbers, in order."""
    found: dict[str, list[Product]] = {}
    for product in products:
        found.setdefault(re.sub(r"\d+", "*", product.weight), []).append(product)
    return found


def find_ranges(folder: Path, products: Iterable[Product], batches: Iterable[Ids]) -> dict[str, Range]:
    """Find the ranges of what products multiply, by the value's name.

    Args:
        folder: holds the float32 graph.
        products: of it.
        batches: real rows, without padding: that has no place in a range.
    """
    ranges: dict[str, Range] = {}
    for values in observe(folder, {product.taken for product in products}, batches):
        for name, array in values.items():
            ranges[name] = ranges.get(name, Range(lowest=0.0, highest=0.0)).joined(array)
    return ranges


def measure_costs(
    folder: Path, by_role: Mapping[str, Sequence[Product]], recipe: Recipe, ranges: Mapping[str, Range], ids: Ids
) -> dict[str, float]:
    """Measure what lowering each role alone does to the logits.

    Args:
        folder: holds the float32 graph; a file is written there meanwhile.
        by_role: its products.
        recipe: how they are computed.
        ranges: of what they multiply.
        ids: real rows.

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
    """List ways to compute roles, the fastest first and the one nearest to float32 last.

    Args:
        precision: int8 or int4.
        costs: as `measure_costs` found them.
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
    """Find the roles that cost more than all cheaper ones together: massive activations, which one scale fits badly.

    Costs add up as independent errors do, by their squares.
    """
    found = []
    ordered = sorted(costs.items(), key=lambda item: -item[1])
    for i, (role, cost) in enumerate(ordered[:-1]):
        if cost <= math.hypot(*(other for _, other in ordered[i + 1 :])):
            break
        found.append(role)
    return found
