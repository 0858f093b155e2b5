"""A baked float32 graph -> the same in lower precision, and what that costs on real rows; knows no training."""

import fnmatch
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from tokenizers import Encoding

from ptexport.exporters.half_pass import LARGEST_FLOAT16, HalfPass, choose_half
from ptexport.exporters.observe import largest
from ptexport.exporters.passes import DeadCodePass, ForgetIntermediateShapesPass, edit
from ptexport.exporters.quantize import ByteTablePass, Product, SplitGemmPass, find_products, quantize
from ptexport.exporters.recipes import FIRST, find_ranges, measure_costs, not_tame, roles
from ptexport.runtime.bundle import MODEL, WEIGHTS, file_entry
from ptexport.runtime.engine import batches
from ptexport.runtime.errors import ExportError
from ptexport.runtime.graph import Graph
from ptexport.runtime.manifest import FileEntry, PassEntry, Precision, PrecisionEntry
from ptexport.runtime.tokens import Ids, TextEncoder

CALIBRATION_ROWS = 64
_PROBED_ROWS = 16
_NAMED = 5  # of the roles that cost most
_SMALL_BYTES = 1024  # what stays in the graph itself
_TASK = ("prompt_rows", "label_rows", "label_bias", "leading_states")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRows:
    """Rows to calibrate and measure on.

    Attributes:
        encodings: of each row, template included.
        labels: number of each row's label, int64; -1: it has none, and is right if answered as in float32.
    """

    encodings: Sequence[Encoding]
    labels: NDArray[np.int64]

    def calibration(self) -> Iterator[Ids]:
        """Give some rows, spread over all, one at a time: padding has no place in a range."""
        step = max(1, len(self.encodings) // CALIBRATION_ROWS)
        return (TextEncoder.pad([encoding]) for encoding in self.encodings[::step])

    def some(self) -> Ids:
        """Give some rows at once, spread over all."""
        step = max(1, len(self.encodings) // _PROBED_ROWS)
        return TextEncoder.pad(self.encodings[::step][:_PROBED_ROWS])

    def logits(self, model: Path) -> NDArray[np.float32]:
        """Ask a graph, float32 [rows, c]."""
        graph = Graph.open(model)
        answers: dict[int, NDArray[np.float32]] = {}
        for batch in batches([len(encoding) for encoding in self.encodings]):
            answers.update(zip(batch, graph.run(TextEncoder.pad([self.encodings[i] for i in batch])), strict=True))
        return np.stack([answers[i] for i in range(len(self.encodings))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A graph of lower precision that was written.

    Attributes:
        passes: what was done to the graph.
        products: how many are computed by which recipe; none where the precision is that of all nodes.
        kept_fp32: weights whose products stayed float32.
        costs: mean difference of a logit with one role of products lowered alone, by role, the largest first.
    """

    passes: list[PassEntry]
    products: dict[str, int] = field(default_factory=dict)
    kept_fp32: list[str] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """What was written in the end.

    Attributes:
        files: that changed, for the manifest.
        passes: what was done to the graph.
        entry: what it cost.
    """

    files: dict[str, FileEntry]
    passes: list[PassEntry]
    entry: PrecisionEntry


def lower(
    folder: Path,
    precision: Precision,
    rows: LabelledRows,
    *,
    keep_fp32: Sequence[str] | Literal["auto"],
    max_drop: float,
    standard: bool,
) -> Lowered:
    """Replace a bundle's graph and weights by ones of lower precision.

    Args:
        folder: holds a float32 graph and its weights.
        precision: any but fp32. bf16 is not run: ONNX Runtime's CPU provider has no products in it.
        rows: real ones.
        keep_fp32: names of weights whose products stay float32, or patterns such as `*.down_proj.weight`; "auto": the
            roles that cost most, as few as `max_drop` takes.
        max_drop: points of accuracy on the rows that may be lost.
        standard: whether only ONNX's own operators may be used.

    Raises:
        ExportError: more accuracy is lost (says which products cost most), or `keep_fp32` names nothing.
    """
    with TemporaryDirectory(prefix=".fp32-", dir=folder) as name:
        source = Path(name)
        for file in (MODEL, WEIGHTS):
            (folder / file).rename(source / file)
        expected = rows.logits(source / MODEL).argmax(1)
        labels = np.where(rows.labels >= 0, rows.labels, expected)
        accuracy_fp32 = float((expected == labels).mean())
        for attempt in _attempts(source, folder, precision, rows, keep_fp32, standard=standard):
            ran = precision != "bf16"
            accuracy = float((rows.logits(folder / MODEL).argmax(1) == labels).mean()) if ran else None
            entry = PrecisionEntry(
                products=attempt.products,
                kept_fp32=attempt.kept_fp32,
                costs=attempt.costs,
                rows=len(labels),
                accuracy_fp32=accuracy_fp32,
                accuracy=accuracy,
            )
            if accuracy is None or 100 * (accuracy_fp32 - accuracy) <= max_drop + 1e-9:
                files = {name: file_entry(folder / name) for name in (MODEL, WEIGHTS)}
                return Lowered(files=files, passes=attempt.passes, entry=entry)
    raise _too_much_lost(precision, entry, max_drop, auto=keep_fp32 == "auto")


def _attempts(
    source: Path,
    folder: Path,
    precision: Precision,
    rows: LabelledRows,
    keep_fp32: Sequence[str] | Literal["auto"],
    *,
    standard: bool,
) -> Iterator[Attempt]:
    if precision in ("fp16", "bf16"):
        yield _halve(source, folder, ir.DataType.FLOAT16 if precision == "fp16" else ir.DataType.BFLOAT16, rows)
        return
    model = ir.load(source / MODEL)
    first = edit(model, SplitGemmPass())
    ir.save(model, source / MODEL)
    by_role = roles(find_products(model))
    ranges = find_ranges(source, itertools.chain(*by_role.values()), rows.calibration()) if precision == "int8" else {}
    recipe = FIRST[precision]
    costs = measure_costs(source, by_role, recipe, ranges, rows.some())
    recipes = dict.fromkeys(by_role, recipe)
    if precision == "int8":
        recipes |= dict.fromkeys(not_tame(costs), "fp32" if standard else "int8-weight")
    for kept in _all_kept(by_role, costs, keep_fp32):
        of_nodes = {
            product.node: "fp32" if product.weight in kept else recipes[role]
            for role, products in by_role.items()
            for product in products
        }
        model = quantize(source / MODEL, of_nodes, ranges)
        counts = Counter[str](of_nodes.values())
        did = ", ".join(f"{n} products in {name}" for name, n in sorted(counts.items()))
        after = edit(model, *([] if standard else [ByteTablePass()]))
        _save(model, folder)
        passes = [*first, PassEntry(name="Quantize", did=did), *after]
        yield Attempt(passes=passes, products=dict(counts), kept_fp32=sorted(kept), costs=costs)


def _halve(source: Path, folder: Path, dtype: ir.DataType, rows: LabelledRows) -> Attempt:
    model = ir.load(source / MODEL)
    large: list[str] = []
    if dtype == ir.DataType.FLOAT16:
        names = [str(v.name) for node in choose_half(model) for v in node.outputs if v.dtype == ir.DataType.FLOAT]
        seen = largest(source, names, rows.calibration())
        weights = {
            str(v.name): v.const_value for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT
        }
        seen |= {
            name: float(np.abs(weight.numpy()).max(initial=0)) for name, weight in weights.items() if weight is not None
        }
        large = [name for name, most in seen.items() if not most <= LARGEST_FLOAT16]
    passes = edit(model, HalfPass(dtype, large), DeadCodePass(), ForgetIntermediateShapesPass())
    _save(model, folder)
    return Attempt(passes=passes)


def _all_kept(
    by_role: Mapping[str, Sequence[Product]], costs: Mapping[str, float], keep_fp32: Sequence[str] | Literal["auto"]
) -> Iterator[set[str]]:
    """List weights to keep in fp32: what was asked for, or ever more roles, those that cost most first."""
    if keep_fp32 == "auto":
        kept: set[str] = set()
        for role in (None, *costs):
            kept |= {product.weight for product in by_role[role]} if role else set()
            yield set(kept)
        return
    weights = [product.weight for products in by_role.values() for product in products]
    for pattern in keep_fp32:
        if not fnmatch.filter(weights, pattern):
            raise ExportError(
                f"keep-fp32 {pattern!r}: matches no weight; need a name, or a pattern such as {next(iter(costs))}"
            )
    yield {weight for pattern in keep_fp32 for weight in fnmatch.filter(weights, pattern)}


def _save(model: ir.Model, folder: Path) -> None:
    """Write a graph with the task's arrays in it, and all else of size in the weights file, in order."""
    values = [
        value
        for name, value in model.graph.initializers.items()
        if name not in _TASK
        and value.const_value is not None
        and (value.const_value.nbytes >= _SMALL_BYTES or isinstance(value.const_value, ir.ExternalTensor))
    ]
    tensors = [value.const_value for value in values if value.const_value is not None]
    stored = ir.external_data.convert_tensors_to_external(tensors, folder, WEIGHTS)
    for value, tensor in zip(values, stored, strict=True):
        value.const_value = tensor
    ir.save(model, folder / MODEL)
    onnx.checker.check_model(folder / MODEL)


def _too_much_lost(precision: Precision, entry: PrecisionEntry, max_drop: float, *, auto: bool) -> ExportError:
    assert entry.accuracy is not None
    lost = 100 * (entry.accuracy_fp32 - entry.accuracy)
    costly = ", ".join(f"{role} ({cost:.2g})" for role, cost in list(entry.costs.items())[:_NAMED])
    tried = "whatever is kept in fp32" if auto else "keep some in fp32 with --keep-fp32 auto"
    return ExportError(
        f"precision {precision}: accuracy on {entry.rows} rows falls from {entry.accuracy_fp32:.1%} to "
        f"{entry.accuracy:.1%}, by {lost:.1f} points, need at most {max_drop:g}; {tried}, or allow more with "
        f"--max-accuracy-drop; what costs most (mean |Δlogit| alone): {costly or 'not known'}"
    )
