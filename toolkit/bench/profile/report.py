"""What a profile measured -> its report: time by kind of operator, by layer, and outside of kernels."""

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ptexport.runtime.bundle.folder import Bundle
from ptexport.toolkit.bench.profile.profile import (
    COLUMNS,
    EMBEDDINGS,
    HEAD,
    NOWHERE,
    RUNS,
    SHARED,
    WARM_UP,
    Measured,
    Place,
    ProfileConfig,
    Spot,
    measure_profile,
    place_kernels,
)
from ptexport.toolkit.bench.report import Figure, Plot, Report, Series, Table, now, this_machine
from ptexport.toolkit.bench.turns import PAUSE_S

_BUSY = 1.1  # times as long as kernels that nothing interrupts
_SAID = 5  # shares in a sentence
_DRAWN = 14  # kinds; the rest are one bar
_EACH = (
    f"ms a run inside kernels. Each node counts with its median of {RUNS} runs, so that one that was interrupted does "
    "not stand out; shares are of their sum."
)
_LAYER_NOTE = (
    f"{_EACH} A bias, a rotation, an activation and a residual sum belong to the product before them, "
    "what rounds to integers to the one behind it. "
    f'"{SHARED}": what is computed on no text, once for all layers, and the leading keys and values. "{HEAD}": the '
    "last norm, and all behind it."
)
_CALL_NOTE = (
    f"Medians of {RUNS}, the smallest and the largest: a call without the profiler, then a run under it. Between "
    "kernels: what ONNX Runtime does in a run besides, and the profiler's own writing."
)
_Name = TypeVar("_Name")


@dataclass(frozen=True, slots=True)
class _Found:
    """What nodes are, in the order they run, and how long they take.

    Attributes:
        kinds: of operators.
        spots: row and column of the table of layers.
        ms: of each, the median of all runs.
        of_runs: likewise, an entry a run.
        whole: ms of a call and of what it is made of, an entry a run each.
    """

    kinds: list[str]
    spots: list[Spot]
    ms: list[float]
    of_runs: list[list[float]]
    whole: Mapping[str, Sequence[float]]

    @property
    def rows(self) -> list[str]:
        """Rows of the table of layers, one a node."""
        return [row for row, _ in self.spots]

    @property
    def parts(self) -> list[str]:
        """Columns of the table of layers, one a node."""
        return [row if row == NOWHERE else column for row, column in self.spots]


def bench_profile(
    config: ProfileConfig, places_of: Callable[[], Mapping[str, Place]], on_turn: Callable[[int, int | None], None]
) -> Report:
    """Profile a bundle.

    Args:
        config: what was asked for.
        places_of: the part of the model that each node of the bundle's graph belongs to, by the node's name; called
            once the bundle is verified.
        on_turn: told how many turns are done, and of how many.

    Raises:
        BenchError: the bundle does not take such texts.
        BundleError: it is not what its manifest says.
    """
    bundle = Bundle.open(config.bundle)
    places = places_of()
    measured = measure_profile(config, bundle, on_turn)
    found = _find(measured, places)
    return Report(
        kind="profile",
        title=f"{bundle.manifest.name}, {bundle.manifest.graph.precision}: profile",
        made=now(),
        command=config.command,
        machine=this_machine(),
        bundles={bundle.manifest.name: bundle.manifest.digest},
        verdict=_verdict(config, found),
        how=_how(config, measured),
        tables=[_call_table(found), _kind_table(found), _layer_table(found)],
        plots=[_kind_plot(found), _layer_plot(found)],
        figures=_figures(config, found),
        left_out={},
    )


def _find(measured: Measured, places: Mapping[str, Place]) -> _Found:
    kernels = measured.runs[0].kernels
    of_runs = [[kernel.ms for kernel in run.kernels] for run in measured.runs]
    inside = [sum(ms) for ms in of_runs]
    return _Found(
        kinds=[kernel.kind for kernel in kernels],
        spots=place_kernels(kernels, places),
        ms=[statistics.median(ms) for ms in zip(*of_runs, strict=True)],
        of_runs=of_runs,
        whole={
            "call": measured.call_ms,
            "runtime": [call - run for call, run in zip(measured.call_ms, measured.plain_ms, strict=True)],
            "plain": measured.plain_ms,
            "run": [run.ms for run in measured.runs],
            "kernels": inside,
            "between": [run.ms - ms for run, ms in zip(measured.runs, inside, strict=True)],
        },
    )


def sums_of(names: Sequence[_Name], ms: Sequence[float]) -> dict[_Name, float]:
    """Add up by name; what takes most comes first."""
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
    return Table(
        title="By kind of operator", columns=["operator", "ms a run", "share", "calls a run"], rows=rows, note=_EACH
    )


def _layer_table(found: _Found) -> Table:
    total, rows, cells = sum(found.ms), sums_of(found.rows, found.ms), sums_of(found.spots, found.ms)
    lines = []
    for row in sorted(rows, key=_row_order):
        parts = [f"{cells[row, column]:.2f}" if (row, column) in cells else "" for column in COLUMNS]
        lines.append([row, *parts, f"{rows[row]:.2f}", f"{rows[row] / total:.1%}"])
    return Table(title="By layer", columns=["", *COLUMNS, "in all", "share"], rows=lines, note=_LAYER_NOTE)


def _call_table(found: _Found) -> Table:
    names = {
        "call": "a call, texts in, logits out",
        "runtime": "of that, outside of ONNX Runtime: tokenisation and Python",
        "plain": "of that, ONNX Runtime's run",
        "run": "a run under the profiler",
        "kernels": "of that, inside kernels",
        "between": "of that, between kernels",
    }
    rows = []
    for name, said in names.items():
        values = found.whole[name]
        rows.append([said, f"{statistics.median(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"])
    return Table(title="A call", columns=["", "ms", "all runs"], rows=rows, note=_CALL_NOTE)


def _kind_plot(found: _Found) -> Plot:
    sums = list(sums_of(found.kinds, found.ms).items())
    drawn, rest = sums[:_DRAWN], sums[_DRAWN:]
    if rest:
        drawn.append((f"{len(rest)} others", sum(ms for _, ms in rest)))
    names, lengths = [kind for kind, _ in drawn], [ms for _, ms in drawn]
    return _bars("by kind of operator", [Series(name="kernels", x=lengths, y=[], labels=names)])


def _layer_plot(found: _Found) -> Plot:
    cells = sums_of(found.spots, found.ms)
    rows = sorted(set(found.rows), key=_row_order)
    return _bars(
        "by layer",
        [
            Series(name=column, x=[cells.get((row, column), 0.0) for row in rows], y=[], labels=rows)
            for column in COLUMNS
        ],
    )


def _bars(title: str, series: list[Series]) -> Plot:
    return Plot(title=title, x_label="ms a run", y_label="", series=series, kind="bars")


def _figures(config: ProfileConfig, found: _Found) -> list[Figure]:
    """What users wait for should go down; kinds and layers only tell where it goes, and come and go with fusions."""
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
    whole = (
        f"A call of {config.batch} texts of {config.tokens} tokens takes {call:.2f} ms, of which {outside:.2f} ms "
        f"({outside / call:.1%}) are outside of ONNX Runtime: tokenisation and Python."
    )
    profiled = (
        f"Of a run under the profiler, {run:.2f} ms, kernels take {inside:.2f} ms ({inside / run:.1%}), and "
        f"{between:.2f} ms are between them."
    )
    total, rows = sum(found.ms), sums_of(found.rows, found.ms)
    sentences = [whole, profiled]
    for what, names in (("kind of operator", found.kinds), ("part", found.parts)):
        shares = [f"{name} {ms / total:.1%}" for name, ms in list(sums_of(names, found.ms).items())[:_SAID]]
        sentences.append(f"By {what}, of the time inside kernels: {', '.join(shares)}.")
    layers = {name: ms for name, ms in rows.items() if name.startswith("layer ")}
    if layers:
        (most, slow), *_, (least, fast) = [*layers.items()] * 2
        sentences.append(f"A layer takes {fast:.2f} ms ({least}) to {slow:.2f} ms ({most}).")
    sentences.append(f"{rows.get(NOWHERE, 0.0):.2f} ms of {total:.2f} ms could not be placed in the model.")
    if inside > _BUSY * total:
        sentences.append(
            f"Kernels took {inside / total - 1:.0%} longer in a run than their medians add up to, as where something "
            "else uses these CPUs; measure again without it."
        )
    return sentences


def _how(config: ProfileConfig, measured: Measured) -> list[str]:
    plain, profiled = statistics.median(measured.plain_ms), statistics.median(measured.profiled_ms)
    ratios = [slow / fast for slow, fast in zip(measured.profiled_ms, measured.plain_ms, strict=True)]
    what = (
        f"The bundle's graph, opened as the engine opens it on the CPU, with {measured.threads} threads; calls of "
        f"{config.batch} texts of {config.tokens} tokens, the prompt not counted, other texts in each turn."
    )
    turns = (
        f"In each turn a call without the profiler and the same with it, {PAUSE_S:g} s apart; {WARM_UP} turns warm up, "
        f"{RUNS} count."
    )
    slowdown = (
        f"The profiler slows the run it measures: {profiled:.2f} ms with it, {plain:.2f} ms without, "
        f"{statistics.median(ratios):.2f} times as long in the same turn ({min(ratios):.2f} to {max(ratios):.2f})."
    )
    placing = (
        "Layers and parts are those of the graph on disk, by the names of its nodes. A node that ONNX Runtime made has "
        "the place of the one it is named after; one named after none has that of its neighbours in the order of "
        "running, where they agree, and a norm that of what is normed for."
    )
    return [what, turns, slowdown, placing]
