"""A graph's summary -> a picture: the steps from ids to logits, with the bytes and FLOPs of each."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptexport.exporters.inspect.parts import PartName
from ptexport.exporters.inspect.summary import GraphSummary, Part
from ptexport.toolkit.store.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: dict[PartName, str] = {
    "embeddings": "#8d99ae",
    "attention": "#1f6f8b",
    "mlp": "#99c1a8",
    "norms": "#8d99ae",
    "prompt embeddings": "#e07a3f",
    "prefix key/values": "#e07a3f",
    "head": "#8d99ae",
    "label weights": "#e07a3f",
    "other": "#cccccc",
}
_NAMES: dict[PartName, str] = {
    "norms": "last norm",
    "other": "scalars, sizes",
}
_LEGEND = {"attention": "#1f6f8b", "MLP": "#99c1a8", "other weights": "#8d99ae", "task arrays": "#e07a3f"}


@dataclass(frozen=True, slots=True)
class _Step:
    """One step in the picture: its name and parts."""

    name: str
    parts: list[Part]


def write_plot(path: Path, name: str, summary: GraphSummary, *, force: bool) -> None:
    """Draw a graph.

    Args:
        path: file to write; its suffix selects the format.
        name: name of the bundle.
        summary: summary of its graph.
        force: replace the file if it exists.

    Raises:
        OutputError: the file exists and `force` is false, or the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    steps = _steps(summary)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ptexport", "text.parse_math": False}):
        figure = Figure(figsize=(9, 1.7 + 0.24 * len(steps)), layout="constrained")
        flow, size, cost = figure.subplots(1, 3, sharey=True, width_ratios=[2.6, 3, 3])
        size.set_ylim(len(steps) - 0.4, -0.6)
        _draw_flow(flow, steps)
        n_bytes = sum(part.size_bytes for part in summary.parts)
        _draw_bars(size, steps, {id(part): part.size_bytes for part in summary.parts}, "B")
        size.set_title(f"{_short(n_bytes)}B of constants", fontsize=10, loc="left")
        _draw_bars(cost, steps, {id(part): part.flops / summary.length for part in summary.parts}, "FLOP")
        cost.set_title(_cost_title(summary), fontsize=10, loc="left")
        figure.suptitle(name, fontsize=12, x=0.01, ha="left", weight="bold")
        patches = [Patch(color=colour, label=label) for label, colour in _LEGEND.items()]
        figure.legend(handles=patches, loc="outside lower left", ncols=4, frameon=False, fontsize=9)
        stream = io.BytesIO()
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(stream, format=path.suffix.removeprefix("."), dpi=150, metadata=metadata)
    write_whole(path, stream.getvalue(), force=force)


def _cost_title(summary: GraphSummary) -> str:
    if summary.flops_per_token is None or summary.flops is None or summary.saved_flops is None:
        return f"FLOPs not known: {', '.join(summary.unknown)}"
    title = f"{_short(summary.flops_per_token)}FLOP per token, in rows of {summary.length}"
    saved = summary.saved_flops / (summary.flops + summary.saved_flops)
    return title + (f"\n(computing one position of the last layer saves {saved:.1%})" if saved else "")


def _steps(summary: GraphSummary) -> list[_Step]:
    """List the steps from ids to logits."""
    inputs, outputs = list(summary.inputs), list(summary.outputs)
    in_layer: dict[int, list[Part]] = {}
    before: list[_Step] = []
    after: list[_Step] = []
    for part in summary.parts:
        if part.layer is not None:
            in_layer.setdefault(part.layer, []).append(part)
        else:
            of_head = part.name in ("norms", "head", "label weights")
            (after if of_head else before).append(_Step(_NAMES.get(part.name, part.name), [part]))
    layers = [_Step(f"layer {layer}", parts) for layer, parts in sorted(in_layer.items())]
    before = [step for step in before if step.name != _NAMES["other"]]
    return [_Step(", ".join(inputs), []), *before, *layers, *after, _Step(", ".join(outputs), [])]


def _draw_flow(axes: "Axes", steps: list[_Step]) -> None:
    """Draw a line from ids to logits with the steps, and the constants that join it."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import FancyBboxPatch

    way = {"arrowstyle": "-|>", "color": "#666666", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (0.12, len(steps) - 1.3), (0.12, 0.3), arrowprops=way, zorder=0)
    for y, step in enumerate(steps):
        names = {part.name for part in step.parts}
        joins = bool(names & {"prompt embeddings", "prefix key/values"})  # constants beside the line
        left = 0.3 if joins else 0.0
        if step.parts:
            colour = _COLOURS[step.parts[0].name] if len(names) == 1 else _COLOURS["attention"]
            pale = [0.75 + 0.25 * channel for channel in to_rgb(colour)]
            shape = "round,pad=0,rounding_size=0.08"
            axes.add_patch(FancyBboxPatch((left, y - 0.3), 1 - left, 0.6, boxstyle=shape, linewidth=0, color=pale))
        if joins:
            axes.plot([left, 0.12], [y, y], color=_COLOURS["prompt embeddings"], linewidth=1.2)
        if step.parts or not y:
            axes.text((left + 1) / 2, y, step.name, ha="center", va="center", fontsize=8)
        else:
            axes.text(0.0, y - 0.1, step.name, ha="left", va="center", fontsize=8)
    axes.set(xlim=(0, 1))
    axes.axis("off")


def _draw_bars(axes: "Axes", steps: list[_Step], values: dict[int, float], unit: str) -> None:
    said = ""
    for y, step in enumerate(steps):
        left = 0.0
        for part in step.parts:
            axes.barh(y, values[id(part)], left=left, height=0.6, color=_COLOURS[part.name])
            left += values[id(part)]
        label = f"{_short(left)}{unit}"
        if left and said != label:  # layers are mostly alike: label the first
            axes.annotate(label, (left, y), (3, 0), textcoords="offset points", va="center", fontsize=8)
            said = label
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, labelleft=False, labelsize=8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{_short(value)}{unit}")
    axes.locator_params(axis="x", nbins=4)
    axes.margins(x=0.2)


def _short(value: float) -> str:
    """Format with three digits and an SI prefix."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "
