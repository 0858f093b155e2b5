"""Measurements of a profile -> its report: time by operator type, by layer, and outside kernels."""

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ptexport.runtime.bundle.folder import Bundle
from ptexport.toolkit.bench.interleaved import PAUSE_S
from ptexport.toolkit.bench.profile.profile import (
    COLUMNS,
    EMBEDDINGS,
    HEAD,
    NOWHERE,
    RUNS,
    SHARED,
    WARM_UP,
    Cell,
    PartOfModel,
    ProfileConfig,
    ProfileSamples,
    measure_profile,
    place_kernels,
)
from ptexport.toolkit.bench.ratio import LatencyRatio
from ptexport.toolkit.bench.report import BenchReport, Figure, Plot, Series, Table, now, this_machine
from ptexport.toolkit.bench.synthetic_texts import only_task
from ptexport.toolkit.progress import Progress

_BUSY = 1.1  # ratio of kernel time to the sum of medians, above which something else uses the CPUs
_LARGEST = 5  # shares in a sentence
_BARS = 10  # operator types in the plot; the rest is one bar
_EACH = (
    f"Milliseconds per run inside kernels. The time of each node is the median of {RUNS} runs, which removes "
    "interrupted ones. Shares are relative to the sum of these medians."
)
_LAYER_NOTE = (
    f"{_EACH} Bias, rotary embedding, activation and residual sum belong to the matrix product before them, "
    "quantization of activations to the one after it. "
    f'"{SHARED}": computed once for all layers, including the constant past key/values. "{HEAD}": the last norm and '
    "everything after it."
)
_CALL_NOTE = (
    f"Median of {RUNS} rounds (minimum to maximum): first a call without the profiler, then a run with it. Between "
    "kernels: the rest of ONNX Runtime's run, including the overhead of the profiler."
)
_Name = TypeVar("_Name")


@dataclass(frozen=True, slots=True)
class _Found:
    """The nodes in order of execution, and their times.

    Attributes:
        kinds: operator of each node.
        cells: row and column of each node in the layer table.
        ms: median time of each node.
        of_runs: times of each node, one list per run.
        whole: times of a call and of its parts in ms, one per run.
    """

    kinds: list[str]
    cells: list[Cell]
    ms: list[float]
    of_runs: list[list[float]]
    whole: Mapping[str, Sequence[float]]

    @property
    def rows(self) -> list[str]:
        """Row of each node in the layer table."""
        return [row for row, _ in self.cells]

    @property
    def parts(self) -> list[str]:
        """Column of each node in the layer table."""
        return [row if row == NOWHERE else column for row, column in self.cells]


def bench_profile(
    config: ProfileConfig, parts_of: Callable[[], Mapping[str, PartOfModel]], progress: Progress
) -> BenchReport:
    """Profile a bundle.

    Args:
        config: settings.
        parts_of: returns the part of the model of each node in the graph, by name; called after the bundle is verified.
        progress: receives the number of rounds as rows.

    Raises:
        BenchError: the bundle does not take such texts.
        BundleError: the bundle does not match its manifest, or has several tasks.
    """
    bundle = Bundle.open(config.bundle)
    only_task(bundle)
    parts = parts_of()
    samples = measure_profile(config, bundle, progress)
    found = _find(samples, parts)
    return BenchReport(
        kind="profile",
        title=f"{bundle.manifest.name}, {bundle.manifest.graph.precision}: profile",
        made=now(),
        command=config.command,
        machine=this_machine(),
        bundles={bundle.manifest.name: bundle.manifest.digest},
        verdict=_verdict(config, found),
        how=_method(config, samples),
        tables=[_call_table(found), _kind_table(found), _layer_table(found)],
        plots=[_kind_plot(found), _layer_plot(found)],
        figures=_figures(config, found),
        left_out={},
    )


def _find(samples: ProfileSamples, parts: Mapping[str, PartOfModel]) -> _Found:
    kernels = samples.runs[0].kernels
    of_runs = [[kernel.ms for kernel in run.kernels] for run in samples.runs]
    inside = [sum(ms) for ms in of_runs]
    return _Found(
        kinds=[kernel.kind for kernel in kernels],
        cells=place_kernels(kernels, parts),
        ms=[statistics.median(ms) for ms in zip(*of_runs, strict=True)],
        of_runs=of_runs,
        whole={
            "call": samples.call_ms,
            "runtime": [call - run for call, run in zip(samples.call_ms, samples.plain_ms, strict=True)],
            "plain": samples.plain_ms,
            "run": [run.ms for run in samples.runs],
            "kernels": inside,
            "between": [run.ms - ms for run, ms in zip(samples.runs, inside, strict=True)],
        },
    )


def sums_of(names: Sequence[_Name], ms: Sequence[float]) -> dict[_Name, float]:
    """Add up times by name, the largest sum first."""
    sums: defaultdict[_Name, float] = defaultdict(float)
    for name, value in zip(names, ms, strict=True):
        sums[name] += value
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _row_order(row: str) -> tuple[int, int]:
    layer = re.fullmatch(r"layer (\d+)", row)
    return (2, int(layer[1])) if layer else ((SHARED, EMBEDDINGS, "", HEAD, NOWHERE).index(row), 0)


def _kind_table(found: _Found) -> Table:
    total, calls = sum(found.ms), Counter(found.kinds)
    rows = [
        [kind, f"{ms:.2f}", f"{ms / total:.1%}", str(calls[kind])]
        for kind, ms in sums_of(found.kinds, found.ms).items()
    ]
    return Table(title="By operator type", columns=["operator", "time (ms)", "share", "nodes"], rows=rows, note=_EACH)


def _layer_table(found: _Found) -> Table:
    total, rows, cells = sum(found.ms), sums_of(found.rows, found.ms), sums_of(found.cells, found.ms)
    lines = []
    for row in sorted(rows, key=_row_order):
        parts = [f"{cells[row, column]:.2f}" if (row, column) in cells else "" for column in COLUMNS]
        lines.append([row, *parts, f"{rows[row]:.2f}", f"{rows[row] / total:.1%}"])
    return Table(title="By layer", columns=["time (ms)", *COLUMNS, "total", "share"], rows=lines, note=_LAYER_NOTE)


def _call_table(found: _Found) -> Table:
    names = {
        "call": "call, from texts to logits",
        "runtime": "outside ONNX Runtime: tokenization, Python",
        "plain": "ONNX Runtime's run",
        "run": "run with the profiler",
        "kernels": "inside kernels",
        "between": "between kernels",
    }
    rows = []
    for name, description in names.items():
        values = found.whole[name]
        rows.append([description, f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"])
    return Table(title="Latency of a call", columns=["part of a call", "latency (ms)"], rows=rows, note=_CALL_NOTE)


def _kind_plot(found: _Found) -> Plot:
    sums = list(sums_of(found.kinds, found.ms).items())
    drawn, rest = sums[:_BARS], sums[_BARS:]
    if rest:
        drawn.append((f"{len(rest)} others", sum(ms for _, ms in rest)))
    total = sum(found.ms)
    return Plot.bars(
        "Time by operator type",
        "time per run (ms)",
        [f"{kind}: {ms:.2f} ms, {ms / total:.1%}" for kind, ms in drawn],
        [ms for _, ms in drawn],
    )


def _layer_plot(found: _Found) -> Plot:
    cells = sums_of(found.cells, found.ms)
    rows = sorted(set(found.rows), key=_row_order)
    series = [
        Series(name=column, x=[cells.get((row, column), 0.0) for row in rows], y=[], labels=rows) for column in COLUMNS
    ]
    return Plot(title="Time by layer", x_label="time per run (ms)", y_label="", series=series, kind="stacked")


def _figures(config: ProfileConfig, found: _Found) -> list[Figure]:
    """Make the figures. Reports are compared by the latencies only, since fusions change operator types and layers."""
    size = f"{config.batch}x{config.tokens}"
    figures = [Figure.of(f"whole/{name}/{size}", found.whole[name], "ms", "lower") for name in ("call", "plain")]
    figures += [Figure.of(f"whole/{name}/{size}", found.whole[name], "ms") for name in ("run", "kernels")]
    figures += [Figure.of(f"outside/{name}/{size}", found.whole[name], "ms") for name in ("runtime", "between")]
    for group, names in (("kind", found.kinds), ("layer", found.rows), ("part", found.parts)):
        of_runs = [sums_of(names, ms) for ms in found.of_runs]
        for name in of_runs[0]:
            short = name.removeprefix("layer ")
            figures.append(Figure.of(f"{group}/{short}/{size}", [run[name] for run in of_runs], "ms"))
    return figures


def _verdict(config: ProfileConfig, found: _Found) -> list[str]:
    call, outside, run, inside, between = (
        statistics.median(found.whole[name]) for name in ("call", "runtime", "run", "kernels", "between")
    )
    largest, largest_ms = next(iter(sums_of(found.kinds, found.ms).items()))
    low, high = min(found.whole["call"]), max(found.whole["call"])
    whole = (
        f"A call of {config.batch} texts of {config.tokens} tokens has a latency of {call:.2f} ms (range {low:.2f} to "
        f"{high:.2f}); {largest} takes {largest_ms / sum(found.ms):.1%} of the time inside kernels."
    )
    profiled = (
        f"{outside:.2f} ms of the call ({outside / call:.1%}) are outside ONNX Runtime: tokenization and Python. A run "
        f"with the profiler takes {run:.2f} ms: {inside:.2f} ms ({inside / run:.1%}) inside kernels and {between:.2f} "
        "ms between them."
    )
    total, rows = sum(found.ms), sums_of(found.rows, found.ms)
    sentences = [whole, profiled]
    for what, names in (("operator type", found.kinds), ("part of the model", found.parts)):
        shares = [f"{name} {ms / total:.1%}" for name, ms in list(sums_of(names, found.ms).items())[:_LARGEST]]
        sentences.append(f"Time inside kernels by {what}: {', '.join(shares)}.")
    layers = {name: ms for name, ms in rows.items() if name.startswith("layer ")}
    if layers:
        (most, slow), *_, (least, fast) = [*layers.items()] * 2
        sentences.append(f"A layer takes {fast:.2f} ms ({least}) to {slow:.2f} ms ({most}).")
    sentences.append(
        f"{rows.get(NOWHERE, 0.0):.2f} ms of {total:.2f} ms inside kernels could not be assigned to a part of the "
        "model."
    )
    if inside > _BUSY * total:
        sentences.append(
            f"Kernels took {inside / total - 1:.0%} longer than the sum of their medians, which happens if other "
            "programs use these CPUs; stop them and measure again."
        )
    return sentences


def _method(config: ProfileConfig, samples: ProfileSamples) -> list[str]:
    plain, profiled = statistics.median(samples.plain_ms), statistics.median(samples.profiled_ms)
    ratio = LatencyRatio.of([slow / fast for slow, fast in zip(samples.profiled_ms, samples.plain_ms, strict=True)])
    return [
        (
            f"The bundle's graph runs on the CPU with {samples.threads} threads, in a session like the engine's. Calls "
            f"have {config.batch} texts of {config.tokens} tokens without the prompt, other texts in each round."
        ),
        (
            f"Each round has a call without the profiler and the same call with it, {PAUSE_S:g} s apart. {RUNS} rounds "
            f"are measured after {WARM_UP} warm-up rounds."
        ),
        (
            f"The profiler's cost: a run takes {profiled:.2f} ms with it and {plain:.2f} ms without, in the same round "
            f"{ratio.words} ({ratio.interval})."
        ),
        (
            "Layers and parts are those of the nodes in model.onnx, by name. A node that ONNX Runtime created is "
            "assigned like the node in its name. A node without such a name is assigned like the nodes before and "
            "after it, if they agree, and a norm like its consumer."
        ),
    ]
