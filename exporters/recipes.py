"""Products + what they multiply on real rows -> how each is computed; knows errors, nothing of graphs or accuracy.

What a product costs is measured where it stands: the error of its result, over the result, on what it multiplies in
the float32 graph.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptexport.exporters.observe import observe
from ptexport.exporters.quantize import BITS, BLOCK, Product, Range, Recipe
from ptexport.runtime.tokens import Ids

TAME = 0.04
"""Largest error of a product whose activations are scaled once for all rows; others are scaled row by row."""

_SAMPLED = 256  # tokens that errors are measured on

_RECIPES: dict[str, tuple[Recipe, Recipe]] = {
    "int8": ("int8", "int8-weight"),
    "int8-dynamic": ("dynamic", "dynamic"),
    "int4": ("int4-weight", "int4-weight"),
}
"""By precision: the recipe of a product whose activations are tame, and that of others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What products cost.

    Attributes:
        ranges: of what is multiplied, by the value's name.
        recipes: by the product's node.
        errors: of the product as its recipe computes it, by node: 0.01 is one hundredth of the result.
    """

    ranges: dict[str, Range]
    recipes: dict[str, Recipe]
    errors: dict[str, float]


def measure(
    folder: Path, products: Sequence[Product], precision: str, batches: Iterable[Ids], *, standard: bool
) -> Measured:
    """Measure each product's error and choose its recipe.

    Args:
        folder: holds the float32 graph that the products are of.
        products: of the graph.
        precision: int8, int8-dynamic or int4.
        batches: real rows, without padding: that has no place in a range.
        standard: whether only ONNX's own operators may be used; what is not tame stays float32 then.
    """
    ranges, samples = _look(folder, {product.taken for product in products}, batches)
    tame, other = _RECIPES[precision]
    if standard:
        other = "fp32"
    recipes: dict[str, Recipe] = {}
    errors = {}
    for product in products:
        recipe, taken = tame, samples[product.taken]
        error = _error(tame, taken, ranges[product.taken], product.matrix.numpy())
        if error > TAME and other != tame:
            recipe, error = other, _error(other, taken, ranges[product.taken], product.matrix.numpy())
        recipes[product.node], errors[product.node] = recipe, error
    return Measured(ranges=ranges, recipes=recipes, errors=errors)


def _look(
    folder: Path, names: set[str], batches: Iterable[Ids]
) -> tuple[dict[str, Range], dict[str, NDArray[np.float32]]]:
    """Find the ranges of values over all batches, and some of their rows."""
    ranges: dict[str, Range] = {}
    samples: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for values in observe(folder, names, batches):
        for name, array in values.items():
            ranges[name] = ranges.get(name, Range(lowest=0.0, highest=0.0)).joined(array)
            missing = _SAMPLED - sum(map(len, samples[name]))
            samples[name].append(array.reshape(-1, array.shape[-1])[:missing].copy())
    return ranges, {name: np.concatenate(parts) for name, parts in samples.items()}


def _error(recipe: Recipe, taken: NDArray[np.float32], seen: Range, matrix: NDArray[np.float32]) -> float:
    if recipe == "fp32":
        return 0.0
    exact = taken @ matrix
    in_blocks = recipe in BITS
    got = taken @ _in_blocks(matrix, BITS[recipe]) if in_blocks else _by_range(taken, seen) @ _by_column(matrix)
    size = float(np.linalg.norm(exact))
    return float(np.linalg.norm(got - exact)) / size if size else 0.0


def _by_range(taken: NDArray[np.float32], seen: Range) -> NDArray[np.float32]:
    scale = (seen.highest - seen.lowest) / 255 or 1.0
    zero = np.round(-seen.lowest / scale)
    numbers: NDArray[np.float32] = (np.clip(np.round(taken / scale) + zero, 0, 255) - zero) * np.float32(scale)
    return numbers


def _by_column(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    scale = np.abs(matrix).max(axis=0, keepdims=True) / 127
    scale[scale == 0] = 1
    numbers: NDArray[np.float32] = np.round(matrix / scale) * scale
    return numbers


def _in_blocks(matrix: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    rows, columns = matrix.shape
    padded = np.zeros((-(-rows // BLOCK) * BLOCK, columns), dtype=np.float32)
    padded[:rows] = matrix
    blocks = padded.reshape(-1, BLOCK, columns)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    scale[scale == 0] = 1
    numbers: NDArray[np.float32] = (np.round(blocks / scale) * scale).reshape(padded.shape)[:rows]
    return numbers
