"""The result type of every bench: figures for machines, tables and plots for people, and a verdict in sentences."""

import itertools
import math
import os
import platform
import re
import statistics
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import msgspec

from ptexport.runtime.errors import DataError, reason
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.runtime.ort.cuda_driver import read_gpu

FORMAT = 1
JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"
_TAIL = 0.025  # probability outside a 95 % interval, at each end
_PACKAGES = ("ptexport", "onnxruntime-gpu", "onnxruntime", "tokenizers", "numpy", "torch", "transformers", "peft")


class Figure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured number.

    Attributes:
        name: name of the figure, the same in every report: "ratio/peft/8x28", "time/ptexport, fp32/8x28".
        value: median, or share of rows.
        low: lower end of the 95 % interval: `median_interval` for medians, Wilson's for shares of rows.
        high: upper end of the interval.
        unit: "s", "ms", "MB", "x" for a ratio, "%" for a share of rows, …
        better: direction of an improvement; None: the figure is not compared between reports.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    better: Literal["higher", "lower"] | None

    @classmethod
    def of(
        cls, name: str, values: Sequence[float], unit: str, better: Literal["higher", "lower"] | None = None
    ) -> "Figure":
        """Summarize the values of rounds, at least one."""
        low, high = median_interval(values)
        return cls(name=name, value=statistics.median(values), low=low, high=high, unit=unit, better=better)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Compute a 95 % confidence interval of the median, for any distribution.

    With fewer than six values it is their minimum and maximum, which have a confidence of less than 95 %. Source: David
    and Nagaraja 2003, Order Statistics, section 7.1.
    """
    n = len(values)
    fewer_below = itertools.accumulate(math.comb(n, k) / 2**n for k in range(n))  # probability of k or fewer
    left_out = max(0, sum(probability <= _TAIL for probability in fewer_below) - 1)
    ranked = sorted(values)
    return ranked[left_out], ranked[n - 1 - left_out]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table for people.

    Attributes:
        title: title of the table.
        columns: headings; the first column names the rows.
        rows: cells, one per column.
        note: explanation below the table; "": none.
        highlight: number of the row of the measured bundle among others; None: none.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    highlight: int | None = None


class Series(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One series of a plot.

    Attributes:
        name: name in the legend.
        x: x of each point, or length of each bar.
        y: y of each point; empty for bars.
        labels: label of each bar; empty for lines.
        low: lower end of each point's or bar's interval; empty: none are drawn.
        high: upper end of each interval.
    """

    name: str
    x: list[float]
    y: list[float]
    labels: list[str] = []
    low: list[float] = []
    high: list[float] = []


class Plot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plot for people.

    Attributes:
        title: title of the plot.
        x_label: label of the x axis, with its unit.
        y_label: label of the y axis, with its unit.
        series: series to draw.
        kind: points and lines; horizontal bars with their labels above them; or horizontal bars of stacked series.
        log_x: whether the x axis is logarithmic.
        log_y: whether the y axis is logarithmic.
        highlight: number of the bar of the measured bundle among others; None: none.
    """

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    kind: Literal["lines", "bars", "stacked"] = "lines"
    log_x: bool = False
    log_y: bool = False
    highlight: int | None = None

    @classmethod
    def bars(
        cls,
        title: str,
        x_label: str,
        labels: list[str],
        values: list[float],
        intervals: Sequence[tuple[float, float]] = (),
        *,
        highlight: int | None = None,
    ) -> "Plot":
        """Make a plot of one bar per value. The labels contain the values, as they are to be read."""
        low, high = ([interval[end] for interval in intervals] for end in (0, 1))
        series = Series(name=title, x=values, y=[], labels=labels, low=low, high=high)
        return cls(title=title, x_label=x_label, y_label="", series=[series], kind="bars", highlight=highlight)


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine of a measurement.

    Attributes:
        processor: name of the processor, as the operating system reports it.
        cpus: number of CPUs that the process may use.
        memory_mb: total memory in MiB.
        system: kernel and architecture.
        python: version of Python.
        versions: versions of the relevant packages that are installed.
        gpu: name of the measured GPU; None: CPUs only.
    """

    processor: str
    cpus: int
    memory_mb: int
    system: str
    python: str
    versions: dict[str, str]
    gpu: str | None = None


class BenchReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The result of a bench.

    Attributes:
        format: version of this layout.
        kind: name of the bench.
        title: title of the page.
        made: date and time, ISO 8601.
        command: command line that made the report.
        machine: machine of the measurement.
        bundles: digests of the bundles' manifests, by name.
        verdict: findings, one sentence each, including where the bundle is worse.
        how: method of the measurement, one sentence each.
        tables: tables for people.
        plots: plots for people.
        figures: figures for machines; names are unique.
        left_out: requested systems that could not be measured, with the reason.
    """

    format: int = FORMAT
    kind: Literal["speed", "quality", "serve", "profile", "gpu"]
    title: str
    made: str
    command: str
    machine: Machine
    bundles: dict[str, str]
    verdict: list[str]
    how: list[str]
    tables: list[Table]
    plots: list[Plot]
    figures: list[Figure]
    left_out: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "BenchReport":
        """Read a report from its JSON file or its folder.

        Raises:
            DataError: the file is missing or not a report of this version.
        """
        file = path / JSON if path.is_dir() else path
        try:
            return msgspec.json.decode(file.read_bytes(), type=cls)
        except OSError as e:
            raise DataError(f"{file}: cannot be read ({e.strerror}); need a report of 'ptexport bench'") from e
        except msgspec.DecodeError as e:
            raise DataError(f"{file}: is not a report of this version ({reason(e)}); measure again") from e


def now() -> str:
    """Return the local date and time as ISO 8601, for `BenchReport.made`."""
    return datetime.now().astimezone().isoformat(timespec="minutes")


def this_machine(provider: str = "cpu") -> Machine:
    """Describe this machine, with its first GPU if the provider is not the CPU."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        processor=_processor(),
        cpus=available_cpus(),
        memory_mb=memory >> 20,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions,
        gpu=None if provider == "cpu" else read_gpu(0).name,
    )


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
