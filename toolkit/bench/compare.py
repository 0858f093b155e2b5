"""Two reports of one bench -> which figures changed beyond noise."""

from dataclasses import dataclass
from typing import Literal

from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.report import Figure, Report

Change = Literal["better", "worse", "same"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A figure in both reports.

    Attributes:
        name: of it.
        unit: likewise.
        old: as it was.
        new: as it is.
        change: whether that is beyond noise, and to which side.
    """

    name: str
    unit: str
    old: Figure
    new: Figure
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What two reports say of each other.

    Attributes:
        compared: figures in both that should go one way, in the order of the new report.
        only_old: names of those that only the old one has.
        only_new: likewise.
        same_machine: whether processor, CPUs and GPU are the same.
    """

    compared: list[Compared]
    only_old: list[str]
    only_new: list[str]
    same_machine: bool

    @property
    def worse(self) -> list[Compared]:
        """What got worse beyond noise."""
        return [compared for compared in self.compared if compared.change == "worse"]


def compare(old: Report, new: Report, *, band: float) -> Comparison:
    """Compare.

    A figure has changed if its median moved by more than the band and the intervals of the two do not overlap: neither
    alone tells a change from a machine that was busy for a moment. A share of rows knows no busy machine, and 15 % of
    80 % were 12 points: there the intervals alone decide.

    Args:
        old: a report.
        new: another of the same kind.
        band: share of the old median that a new one may be off.

    Raises:
        BenchError: they are of different kinds, or have no figure in common.
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
    return Comparison(
        compared=[_compared(before[name], after[name], band) for name in both],
        only_old=[name for name in before if name not in after],
        only_new=[name for name in after if name not in before],
        same_machine=machines[0] == machines[1],
    )


def _compared(old: Figure, new: Figure, band: float) -> Compared:
    apart = new.low > old.high or new.high < old.low
    change: Change = "same"
    moved = abs(new.value - old.value) > (0 if new.unit == "%" else band * abs(old.value))
    if apart and moved:
        change = "better" if (new.value > old.value) == (new.better == "higher") else "worse"
    return Compared(name=new.name, unit=new.unit, old=old, new=new, change=change)
