"""Two reports of one bench -> the figures that changed beyond noise."""

from dataclasses import dataclass
from typing import Literal

from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.report import BenchReport, Figure

Change = Literal["better", "worse", "same"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureChange:
    """One figure in two reports.

    Attributes:
        name: name of the figure.
        unit: unit of the figure.
        old: figure in the old report.
        new: figure in the new report.
        change: "better" or "worse" if the difference is beyond noise, else "same".
    """

    name: str
    unit: str
    old: Figure
    new: Figure
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportComparison:
    """The comparison of two reports. It covers the figures with a direction of improvement.

    Attributes:
        compared: figures in both reports, in the order of the new one.
        only_old: names of figures that are only in the old report.
        only_new: names of figures that are only in the new report.
        same_machine: whether processor, number of CPUs and GPU are the same.
    """

    compared: list[FigureChange]
    only_old: list[str]
    only_new: list[str]
    same_machine: bool

    @property
    def worse(self) -> list[FigureChange]:
        """The figures that got worse beyond noise."""
        return [compared for compared in self.compared if compared.change == "worse"]


def compare(old: BenchReport, new: BenchReport, *, band: float) -> ReportComparison:
    """Compare two reports.

    A figure has changed if its median moved by more than the band and the two intervals do not overlap; either alone
    may be due to a machine that was busy for a moment. For shares of rows, such as accuracies, only the intervals
    count: other load does not change them, and 15 % of 80 % would be 12 points.

    Args:
        old: report to compare with.
        new: report of the same kind.
        band: noise band, as a share of the old median (0.15 for 15 %).

    Raises:
        BenchError: the reports are of different kinds, or have no figure in common.
    """
    if old.kind != new.kind:
        raise BenchError(
            f"reports: one is of 'bench {old.kind}', the other of 'bench {new.kind}'; compare two of one kind"
        )
    before, after = ({f.name: f for f in report.figures if f.better is not None} for report in (old, new))
    both = [name for name in after if name in before]
    if not both:
        raise BenchError("reports: have no figure in common; measure the same systems and sizes")
    machines = [(report.machine.processor, report.machine.cpus, report.machine.gpu) for report in (old, new)]
    return ReportComparison(
        compared=[_compared(before[name], after[name], band) for name in both],
        only_old=[name for name in before if name not in after],
        only_new=[name for name in after if name not in before],
        same_machine=machines[0] == machines[1],
    )


def _compared(old: Figure, new: Figure, band: float) -> FigureChange:
    apart = new.low > old.high or new.high < old.low
    change: Change = "same"
    moved = abs(new.value - old.value) > (0 if new.unit == "%" else band * abs(old.value))
    if apart and moved:
        change = "better" if (new.value > old.value) == (new.better == "higher") else "worse"
    return FigureChange(name=new.name, unit=new.unit, old=old, new=new, change=change)
