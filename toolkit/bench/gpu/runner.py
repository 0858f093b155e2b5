"""A step -> its result: its module runs in a process with a time limit, and is killed with all that it started."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from ptexport.toolkit.bench.gpu.results import STEPS, Finding, Status, StepResult
from ptexport.toolkit.bench.gpu.steps import Step

_CHILD = "ptexport.toolkit.bench.gpu.child"
_LONGEST = 400  # characters of a reason


def run_step(step: Step, out: Path, *, limit_s: float) -> StepResult:
    """Run a step.

    Args:
        step: the step.
        out: folder of the proof; the step's standard error is kept beside its result.
        limit_s: seconds after which it is killed.
    """
    job = msgspec.json.encode(step.job).decode()
    command = [sys.executable, "-m", _CHILD, step.kind, job]
    folder = out / STEPS
    said, errors = folder / f"{step.name}.out", folder / f"{step.name}.log"
    started = time.monotonic()
    code = _run(command, said, errors, limit_s)
    seconds = time.monotonic() - started
    findings = _findings(said.read_bytes())
    said.unlink()
    status, why = _judge(code, findings, errors, limit_s)
    return StepResult(
        name=step.name,
        kind=step.kind,
        provider=step.job.provider,
        status=status,
        why=why,
        seconds=round(seconds, 3),
        findings=findings,
    )


def _run(command: list[str], said: Path, errors: Path, limit_s: float) -> int | None:
    """Run a command in a process group of its own; returns its exit code, None if it was killed at the limit."""
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with said.open("wb") as output, errors.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=log, env=environment, start_new_session=True
        )
        try:
            return process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it started, too, and also if this is interrupted
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _findings(said: bytes) -> list[Finding]:
    """Read the whole lines of a step, which may have been cut off."""
    return [msgspec.json.decode(line, type=Finding) for line in said.split(b"\n")[:-1]]


def _judge(code: int | None, findings: list[Finding], errors: Path, limit_s: float) -> tuple[Status, str]:
    wrong = [f"{finding.what}: {finding.said}" for finding in findings if not finding.ok]
    if code is None:
        return "failed", f"was killed after {limit_s:.0f} s, {len(findings)} findings were kept"
    if code:
        lines = [line.strip() for line in errors.read_text("utf-8", "replace").splitlines() if line.strip()]
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        return "failed", f"{_short(lines[-1]) if lines else 'no output'} ({ended})"
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return "failed", _short(wrong[0]) + more
    return ("passed", "") if findings else ("failed", "found nothing")


def _short(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
