"""The one shape of every bench's result: figures for machines, tables and plots for people, and a verdict in words."""

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
_OUTSIDE = 0.025  # at each end, for 95 %
_PACKAGES = ("ptexport", "onnxruntime-gpu", "onnxruntime", "tokenizers", "numpy", "torch", "transformers", "peft")


class Figure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number that was measured.

    Attributes:
        name: what it is, the same in every report: "ratio/peft/8x28", "time/bundle/8x28".
        value: the median.
        low: where its interval begins: of rounds see `median_interval`, of a share of rows Wilson's.
        high: where it ends.
        unit: "s", "MB", "x" of a ratio, "%" of rows, …
        better: which way it should go; None: it only describes.
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
        """Summarize rounds, at least one."""
        low, high = median_interval(values)
        return cls(name=name, value=statistics.median(values), low=low, high=high, unit=unit, better=better)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which rounds the median of many more lies with 95 %, whatever their distribution.

    Of fewer than six the smallest and the largest, which are less than that. Source: order statistics, David and
    Nagaraja 2003, Order Statistics, section 7.1.
    """
    n = len(values)
    fewer_below = itertools.accumulate(math.comb(n, k) / 2**n for k in range(n))  # chance of k or fewer
    left_out = max(0, sum(chance <= _OUTSIDE for chance in fewer_below) - 1)
    ranked = sorted(values)
    return ranked[left_out], ranked[n - 1 - left_out]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table for people.

    Attributes:
        title: what it shows.
        columns: their headings; the first column names the rows.
        rows: cells, as many as columns.
        note: what a reader must know; "" for nothing.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


class Series(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Points of one colour.

    Attributes:
        name: for the legend.
        x: of each point.
        y: likewise.
        labels: a word beside each point; none: the points are joined by a line.
        low: where each point's interval begins; none: points have none.
        high: where it ends.
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
        title: what it shows.
        x_label: with its unit.
        y_label: likewise.
        series: what is drawn.
        kind: points and lines, or bars lying one below the other, a series' `labels` naming them and `x` their lengths.
        log_x: whether the scale is logarithmic.
        log_y: likewise.
    """

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    kind: Literal["lines", "bars"] = "lines"
    log_x: bool = False
    log_y: bool = False


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it ran on.

    Attributes:
        processor: its name, as the system gives it.
        cpus: that this process may use.
        memory_mb: in all, in MiB.
        system: kernel and architecture.
        python: its version.
        versions: of packages that matter, where they are installed.
        gpu: that was measured; None: only CPUs were.
    """

    processor: str
    cpus: int
    memory_mb: int
    system: str
    python: str
    versions: dict[str, str]
    gpu: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bench found.

    Attributes:
        format: of this file.
        kind: which bench.
        title: of the page.
        made: when, ISO 8601.
        command: what to type for the same.
        machine: what it ran on.
        bundles: digests of the manifests, by name.
        verdict: in plain words, the cases where the bundle loses among them.
        how: what was compared and how, a sentence an entry.
        tables: for people.
        plots: for people.
        figures: for machines, each name once.
        left_out: what was asked for and not measured, with the reason.
    """

    format: int = FORMAT
    kind: Literal["speed", "quality", "serve", "profile"]
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
    def read(cls, path: Path) -> "Report":
        """Read a report, from its file or the folder that holds it.

        Raises:
            DataError: there is none that this version can read.
        """
        file = path / JSON if path.is_dir() else path
        try:
            return msgspec.json.decode(file.read_bytes(), type=cls)
        except OSError as e:
            raise DataError(f"{file}: cannot be read ({e.strerror}); need a report of 'ptexport bench'") from e
        except msgspec.DecodeError as e:
            raise DataError(f"{file}: is no report this version can read ({reason(e)}); measure again") from e


def now() -> str:
    """When a report is made."""
    return datetime.now().astimezone().isoformat(timespec="minutes")


def this_machine(provider: str = "cpu") -> Machine:
    """Describe this machine, and its first GPU if that provider runs on it."""
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
