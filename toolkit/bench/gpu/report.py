"""Results of steps -> the report: what is proved and what failed, a table of steps, and a table per kind."""

from collections.abc import Mapping, Sequence

import msgspec

from ptexport.toolkit.bench.gpu.reasons import Device
from ptexport.toolkit.bench.gpu.results import StepResult
from ptexport.toolkit.bench.gpu.steps import Step
from ptexport.toolkit.bench.report import BenchReport, Figure, Table, now, this_machine

_TITLES = {
    "doctor": "The machine",
    "peak": "Measured rates of the card",
    "inputs": "Bundles",
    "reference": "Logits of untouched Transformers",
    "place": "Placement and golden rows",
    "parity": "Parity with untouched Transformers, and batch invariance",
    "graph": "CUDA graphs",
    "buffers": "Pageable, pinned and device memory",
    "start": "Start and memory",
    "speed": "Speed",
    "engine": "TensorRT",
}
_HOW = [
    (
        "Each step runs in a process of its own, which is killed at its limit with all that it started. A failure is "
        "recorded, and the next step starts."
    ),
    (
        "A GPU is proved if the steps doctor, place and parity pass for every fp32 bundle: all products run on the "
        "GPU, the golden rows and all texts have the logits of untouched Transformers, which ran on the CPU in fp32, "
        "and they are the same alone and among others."
    ),
    "The steps speed and compiled are `ptexport bench speed`, whose whole reports are in folders of their names.",
]


def why_unproved(steps: Sequence[Step], results: Mapping[str, StepResult], device: Device) -> str | None:
    """Say why no GPU is proved; None: one is."""
    if device.gpu is None:
        return device.lacking or f"provider {device.provider} is a rehearsal"
    essential = [step for step in steps if step.essential]
    if not any(step.kind == "parity" for step in essential):
        return "no bundle is in fp32, need one"
    for step in essential:
        result = results.get(step.name)
        if result is None or result.status != "passed":
            return f"{step.name}: {'has not run' if result is None else result.why}"
    return None


def gpu_report(
    steps: Sequence[Step], results: Mapping[str, StepResult], device: Device, *, command: str
) -> BenchReport:
    """Make the report.

    Args:
        steps: all steps, in order.
        results: results by the names of steps; some may have none.
        device: what the steps ran on.
        command: command line that made the report.
    """
    known = [results[step.name] for step in steps if step.name in results]
    gpu = None if device.gpu is None else device.gpu.name
    return BenchReport(
        kind="gpu",
        title="GPU proof",
        made=now(),
        command=command,
        machine=msgspec.structs.replace(this_machine(), gpu=gpu),
        bundles={},
        verdict=_verdict(steps, results, device),
        how=_HOW,
        tables=[_overview(known), *_tables(known)],
        plots=[],
        figures=_figures(known),
        left_out={step.name: "not asked for yet" for step in steps if step.name not in results},
    )


def _verdict(steps: Sequence[Step], results: Mapping[str, StepResult], device: Device) -> list[str]:
    unproved = why_unproved(steps, results, device)
    if unproved is None:
        assert device.gpu is not None
        first = f"{device.gpu.name} is proved: every fp32 bundle runs on it with the logits of untouched Transformers."
    else:
        first = f"No GPU is proved: {unproved}."
    statuses = [result.status for result in results.values()]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in ("passed", "failed", "not run"))
    failed = [f"{result.name} failed: {result.why}." for result in results.values() if result.status == "failed"]
    return [first, f"Of {len(steps)} steps {counts}.", *failed]


def _overview(known: Sequence[StepResult]) -> Table:
    rows = [[result.name, result.status, f"{result.seconds:.1f}", result.why] for result in known]
    return Table(title="Steps", columns=["step", "result", "seconds", "why"], rows=rows)


def _tables(known: Sequence[StepResult]) -> list[Table]:
    """Make a table of findings per kind of step; its columns are the values that its findings have."""
    tables = []
    for kind, title in _TITLES.items():
        own = [(result, finding) for result in known if result.kind == kind for finding in result.findings]
        if not own:
            continue
        names = list(dict.fromkeys(name for _, finding in own for name in finding.values))
        rows = [
            [
                result.name,
                finding.what,
                *(_shown(finding.values[name]) if name in finding.values else "" for name in names),
                "" if finding.ok else "no",
                finding.said,
            ]
            for result, finding in own
        ]
        tables.append(Table(title=title, columns=["step", "what", *names, "as it should be", "said"], rows=rows))
    return tables


def _shown(value: float) -> str:
    return f"{value:.0f}" if value == int(value) or value >= 1000 else f"{value:.3g}"


def _figures(known: Sequence[StepResult]) -> list[Figure]:
    """Make a figure of every value; the last one counts where a step found something twice."""
    values = {
        f"{result.name}/{finding.what}/{name}": value
        for result in known
        for finding in result.findings
        for name, value in finding.values.items()
    }
    return [Figure.of(name, [value], name.rpartition("/")[2]) for name, value in values.items()]
