"""A baked fp32 graph -> the same in a lower precision, and its accuracy on rows; knows no training."""

import fnmatch
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from tokenizers import Encoding

from ptexport.exporters.passes.cleanup import DeadCodePass, ForgetIntermediateShapesPass
from ptexport.exporters.passes.edit import edit
from ptexport.exporters.precision.fewer_kernels import JoinProductsPass, RotationSignPass
from ptexport.exporters.precision.half_pass import LARGEST_FLOAT16, HalfMaskPass, HalfPass, choose_half
from ptexport.exporters.precision.observe import largest
from ptexport.exporters.precision.quantize import ByteTablePass, Product, Recipe, SplitGemmPass, find_products, quantize
from ptexport.exporters.precision.recipes import FIRST, find_ranges, measure_costs, plans, roles
from ptexport.runtime.bundle.folder import MODEL, WEIGHTS, file_entry
from ptexport.runtime.bundle.manifest import FileEntry, PassEntry, Precision
from ptexport.runtime.bundle.measured import PrecisionEntry
from ptexport.runtime.engine.batching import batches_for, score
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.errors import ExportError
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.io_binding import Ids

CALIBRATION_ROWS = 64
_PROBED_ROWS = 16
_NAMED = 5  # roles that a message names, those that cost most
_SMALL_BYTES = 1024  # smaller arrays stay in the graph's file
_TASK = ("prompt_embeddings", "label_weights", "label_bias", "prefix_kv")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRows:
    """Rows to calibrate and measure on.

    Attributes:
        encodings: of each row, template included.
        labels: number of each row's label, int64; -1: the row has none, and the fp32 graph's label counts as right.
    """

    encodings: Sequence[Encoding]
    labels: NDArray[np.int64]

    def calibration(self) -> Iterator[Ids]:
        """Yield some rows, spread over all, one at a time: padding must not widen a range."""
        return (TextEncoder.pad([encoding]) for encoding in self._spread(CALIBRATION_ROWS))

    def some(self) -> Ids:
        """Return a batch of some rows, spread over all."""
        return TextEncoder.pad(self._spread(_PROBED_ROWS))

    def _spread(self, most: int) -> list[Encoding]:
        n = len(self.encodings)
        return [self.encodings[i] for i in np.linspace(0, n - 1, min(n, most)).astype(int)]

    def predict(self, model: Path) -> NDArray[np.int64]:
        """Predict each row's label with a graph, int64 [rows].

        Raises:
            ExportError: a logit is not a finite number.
        """
        graph = Graph.open(model)
        predicted = np.empty(len(self.encodings), dtype=np.int64)
        for batch in batches_for(graph, [len(encoding) for encoding in self.encodings]):
            logits = score(graph, [self.encodings[i] for i in batch])[:, 0]
            if not np.isfinite(logits).all():
                row = batch[int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])]
                raise ExportError(f"row {row}: a logit is not a finite number in this precision; choose another")
            predicted[batch] = logits.argmax(1)
        return predicted


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A graph of lower precision that was written.

    Attributes:
        passes: edits of the graph.
        products: number of products by recipe; empty in half precision.
        kept_fp32: weights whose products stayed in fp32.
        costs: mean difference of a logit if one role of products alone is lowered, by role, the largest first.
    """

    passes: list[PassEntry]
    products: dict[str, int] = field(default_factory=dict)
    kept_fp32: list[str] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """The graph that was accepted.

    Attributes:
        files: changed files, for the manifest.
        passes: edits of the graph.
        entry: its cost, for the manifest.
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
        folder: holds an fp32 graph and its weights.
        precision: any except fp32. A graph in bf16 is not run: ONNX Runtime's CPU provider cannot run it.
        rows: rows of the task.
        keep_fp32: names of weights whose products stay in fp32, or patterns such as `*.down_proj.weight`; "auto": the
            roles that cost most, as few as `max_drop` needs.
        max_drop: points of accuracy on the rows that may be lost.
        standard: whether only ONNX's own operators may be used, as TensorRT's parser needs them.

    Raises:
        ExportError: more accuracy is lost (the message names the products that cost most), or `keep_fp32` matches
            nothing.
    """
    with TemporaryDirectory(prefix=".fp32-", dir=folder) as name:
        source = Path(name)
        for file in (MODEL, WEIGHTS):
            (folder / file).rename(source / file)
        expected = rows.predict(source / MODEL)
        labels = np.where(rows.labels >= 0, rows.labels, expected)
        before, after = float((expected == labels).mean()), None
        if precision in ("fp16", "bf16"):
            attempts: Iterable[Attempt] = [_halve(source, folder, precision, rows)]
        else:
            attempts = _in_integers(source, folder, precision, rows, keep_fp32, standard=standard)
        for attempt in attempts:
            after = None if precision == "bf16" else float((rows.predict(folder / MODEL) == labels).mean())
            if after is None or 100 * (before - after) <= max_drop + 1e-9:
                return _accepted(attempt, folder, n_rows=len(labels), before=before, after=after)
    assert after is not None
    fell = f"falls from {before:.1%} to {after:.1%}, by {100 * (before - after):.1f} points"
    raise ExportError(
        f"precision {precision}: accuracy on {len(labels)} rows {fell}, need at most {max_drop:g}; "
        f"{_advice(attempt, keep_fp32)}"
    )


def _accepted(attempt: Attempt, folder: Path, *, n_rows: int, before: float, after: float | None) -> Lowered:
    entry = PrecisionEntry(
        products=attempt.products,
        kept_fp32=attempt.kept_fp32,
        costs=attempt.costs,
        rows=n_rows,
        accuracy_fp32=before,
        accuracy=after,
    )
    files = {name: file_entry(folder / name) for name in (MODEL, WEIGHTS)}
    return Lowered(files=files, passes=attempt.passes, entry=entry)


def _advice(attempt: Attempt, keep_fp32: Sequence[str] | Literal["auto"]) -> str:
    advice = "allow more with --max-accuracy-drop, or choose another precision"
    if not attempt.costs:
        return advice
    costly = ", ".join(f"{role} ({cost:.2g})" for role, cost in list(attempt.costs.items())[:_NAMED])
    kept = "" if keep_fp32 == "auto" else "keep some in fp32 with --keep-fp32 auto, "
    return f"{kept}{advice}; what costs most (mean |Δlogit| alone): {costly}"


def _halve(source: Path, folder: Path, precision: Precision, rows: LabelledRows) -> Attempt:
    model = ir.load(source / MODEL)
    dtype = ir.DataType.FLOAT16 if precision == "fp16" else ir.DataType.BFLOAT16
    masks = edit(model, HalfMaskPass())
    ir.save(model, source / MODEL)
    large = _too_large(model, source, rows) if precision == "fp16" else []
    passes = edit(
        model,
        JoinProductsPass(large),
        RotationSignPass(),
        HalfPass(dtype, large),
        DeadCodePass(),
        ForgetIntermediateShapesPass(),
    )
    _save(model, folder)
    return Attempt(passes=[*masks, *passes])


def _too_large(model: ir.Model, source: Path, rows: LabelledRows) -> list[str]:
    """Find the inputs and outputs of half nodes that may overflow float16: constants, and values seen on the rows."""
    values = {value for node in choose_half(model) for value in (*node.inputs, *node.outputs) if value is not None}
    floats = {str(value.name): value for value in values if value.dtype == ir.DataType.FLOAT}
    constants = {name: ir.convenience.get_const_tensor(value) for name, value in floats.items()}
    seen = largest(source, sorted(name for name, tensor in constants.items() if tensor is None), rows.calibration())
    seen |= {name: float(np.abs(t.numpy()).max(initial=0)) for name, t in constants.items() if t is not None}
    return sorted(name for name, most in seen.items() if not most <= LARGEST_FLOAT16)


def _in_integers(
    source: Path,
    folder: Path,
    precision: Precision,
    rows: LabelledRows,
    keep_fp32: Sequence[str] | Literal["auto"],
    *,
    standard: bool,
) -> Iterator[Attempt]:
    model = ir.load(source / MODEL)
    first = edit(model, SplitGemmPass())
    ir.save(model, source / MODEL)
    by_role = roles(find_products(model))
    named = set() if keep_fp32 == "auto" else _named(by_role, keep_fp32)
    ranges = find_ranges(source, itertools.chain(*by_role.values()), rows.calibration()) if standard else {}
    recipe: Recipe = "range" if standard else FIRST[precision]
    costs = measure_costs(source, by_role, recipe, ranges, rows.some())
    tried = plans(precision, costs, standard=standard)
    if keep_fp32 == "auto":  # more roles each time, in the order of their costs
        nearest = tried[-1]
        tried += [nearest | dict.fromkeys(list(costs)[:n], "fp32") for n in range(1, len(costs) + 1)]
    for plan in tried:
        of_nodes: dict[str, Recipe] = {
            product.node: "fp32" if product.weight in named else plan[role]
            for role, products in by_role.items()
            for product in products
        }
        model = quantize(source / MODEL, of_nodes, ranges)
        counts = Counter[str](of_nodes.values())
        did = ", ".join(f"{n} products in {name}" for name, n in sorted(counts.items()))
        after = edit(model, *([] if standard else [ByteTablePass()]))
        _save(model, folder)
        yield Attempt(
            passes=[*first, PassEntry(name="Quantize", did=did), *after],
            products=dict(counts),
            kept_fp32=sorted({p.weight for p in itertools.chain(*by_role.values()) if of_nodes[p.node] == "fp32"}),
            costs=costs,
        )


def _named(by_role: Mapping[str, Sequence[Product]], patterns: Sequence[str]) -> set[str]:
    """Find the weights that have one of the names, or match a pattern."""
    weights = [product.weight for products in by_role.values() for product in products]
    for pattern in patterns:
        if not fnmatch.filter(weights, pattern):
            need = f"need a name, or a pattern such as {next(iter(by_role))}"
            raise ExportError(f"keep-fp32 {pattern!r}: matches no weight, {need}; name one of these")
    return {weight for pattern in patterns for weight in fnmatch.filter(weights, pattern)}


def _save(model: ir.Model, folder: Path) -> None:
    """Write a graph; its task arrays stay in the graph's file, other large arrays go to the weights file, in order."""
    for name in _TASK:  # ONNX Runtime's quantizer adds a field to some, by which readers no longer know them
        array = model.graph.initializers[name].const_value if name in model.graph.initializers else None
        if array is not None:
            model.graph.initializers[name].const_value = ir.tensor(array.numpy(), name=name)
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
