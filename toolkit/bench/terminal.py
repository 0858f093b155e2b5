"""A report, or a comparison of two -> a verdict and tables on standard output."""

from ptexport.toolkit.bench.compare import FigureChange, ReportComparison
from ptexport.toolkit.bench.report import BenchReport, Figure
from ptexport.toolkit.tables import print_table, say


def print_report(report: BenchReport) -> None:
    """Print the verdict of a report, then its tables."""
    first, *others = report.verdict
    say(first, style="bold")
    for line in [*others, *(f"Not measured: {name}: {why}" for name, why in report.left_out.items())]:
        say(line)
    for table in report.tables:
        say("")
        print_table(table.columns, table.rows, title=table.title, highlight=table.highlight)
        if table.note:
            say(table.note, style="dim")
    say("")


def print_comparison(comparison: ReportComparison) -> None:
    """Print which figures of two reports changed, then all of them side by side."""
    say(_verdict(comparison), style="bold")
    if not comparison.same_machine:
        say("The reports are from different machines, which alone may change ratios.")
    for names, which in ((comparison.only_old, "old"), (comparison.only_new, "new")):
        if names:
            say(f"Only in the {which} report: {', '.join(names)}.")
    rows = [
        [each.name, _with_interval(each.old), _with_interval(each.new), f"{_difference(each)} {each.change}".strip()]
        for each in comparison.compared
    ]
    say("")
    print_table(("figure", "old", "new", "change"), rows)


def _verdict(comparison: ReportComparison) -> str:
    n = len(comparison.compared)
    changes = []
    for word in ("worse", "better"):
        names = [each.name for each in comparison.compared if each.change == word]
        if names:
            changes.append(f"{len(names)} of {n} figures got {word} beyond noise: {', '.join(names)}")
    return f"{'; '.join(changes)}." if changes else f"None of {n} figures changed beyond noise."


def _difference(change: FigureChange) -> str:
    old, new = change.old.value, change.new.value
    if change.unit == "%":
        return f"{new - old:+.1f} points"
    return f"{new / old - 1:+.0%}" if old else ""


def _with_interval(figure: Figure) -> str:
    interval = "" if figure.low == figure.high else f" ({figure.low:.3g} to {figure.high:.3g})"
    return f"{figure.value:.3g} {figure.unit}{interval}"
