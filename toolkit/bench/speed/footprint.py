"""Measurements of systems -> start times, memory and files: figures, tables, bars, and where another needs less."""

import statistics
from typing import Literal

from ptexport.toolkit.bench.interleaved import SpeedResults
from ptexport.toolkit.bench.report import Figure, Plot, Table

MB = 1e6
_CLEARLY_LESS = 0.9  # of the first system's
_COLUMNS = ("system", "peak memory (MB)", "memory (MB)", "first prediction (s)", "files (MB)", "new task (MB)")
_NOTE = (
    "Peak memory: of the process, after all sizes. Memory: resident after the first prediction. First prediction: time "
    "from the start of the process to it, files in the page cache. New task: size of the files that a device with "
    "another task on the backbone lacks."
)
_SETTINGS_NOTE = "Largest difference of a logit, and number of labels that differ, from {first}, before timing."


def footprint_figures(results: SpeedResults) -> list[Figure]:
    """Make figures of start times, memory and files; only those of the first system are compared between reports."""
    figures = []
    for name, system in results.systems.items():
        better: Literal["lower"] | None = "lower" if name == results.first else None
        figures += [
            Figure.of(f"start/{name}", system.start_s, "s"),
            Figure.of(f"resident/{name}", [system.resident_bytes / MB], "MB", better),
            Figure.of(f"peak/{name}", [system.peak_bytes / MB], "MB"),
            Figure.of(f"files/{name}", [system.file_bytes / MB], "MB", better),
            Figure.of(f"task/{name}", [system.task_bytes / MB], "MB", better),
        ]
    return figures


def footprint_tables(results: SpeedResults) -> list[Table]:
    """Make the tables of memory, start times and files, and of the settings, by system."""
    rows, settings = [], []
    for name, system in results.systems.items():
        memory = (megabytes(system.peak_bytes), megabytes(system.resident_bytes))
        files = (megabytes(system.file_bytes), megabytes(system.task_bytes))
        rows.append([name, *memory, f"{statistics.median(system.start_s):.2f}", *files])
        differences = ("", "") if name == results.first else (f"{system.max_abs_diff:.1e}", str(system.flips))
        settings.append([name, system.setting, *differences])
    return [
        Table(title="Peak memory, start and files", columns=list(_COLUMNS), rows=rows, note=_NOTE, highlight=0),
        Table(
            title="Settings",
            columns=["system", "setting", "largest |Δlogit|", "labels that differ"],
            rows=settings,
            note=_SETTINGS_NOTE.format(first=results.first) if len(settings) > 1 else "",
            highlight=0,
        ),
    ]


def memory_bars(results: SpeedResults) -> Plot:
    """Draw the peak memory of the systems, the smallest first."""
    names = sorted(results.systems, key=lambda name: results.systems[name].peak_bytes)
    sizes = [results.systems[name].peak_bytes for name in names]
    return Plot.bars(
        "Peak memory",
        "peak memory (MB)",
        [f"{name}: {megabytes(size)} MB" for name, size in zip(names, sizes, strict=True)],
        [size / MB for size in sizes],
        highlight=names.index(results.first),
    )


def needs_less(results: SpeedResults, name: str, *, subject: str, than: str) -> list[str]:
    """State in a sentence in what a system needs clearly less than the first; none: in nothing."""
    ours, theirs = results.systems[results.first], results.systems[name]
    start_s = [statistics.median(system.start_s) for system in (theirs, ours)]
    less = []
    if start_s[0] < _CLEARLY_LESS * start_s[1]:
        less.append(f"{start_s[0]:.2f} s instead of {start_s[1]:.2f} s to its first prediction")
    for what, their_bytes, our_bytes in (
        ("of peak memory", theirs.peak_bytes, ours.peak_bytes),
        ("of files", theirs.file_bytes, ours.file_bytes),
        ("for a new task", theirs.task_bytes, ours.task_bytes),
    ):
        if their_bytes < _CLEARLY_LESS * our_bytes:
            less.append(f"{megabytes(their_bytes)} MB instead of {megabytes(our_bytes)} MB {what}")
    return [f"{subject} needs less than {than}: {', '.join(less)}."] if less else []


def megabytes(size_bytes: int) -> str:
    """Write a size in MB, without the unit."""
    return f"{size_bytes / MB:.0f}" if size_bytes >= 10 * MB else f"{size_bytes / MB:.2f}"
