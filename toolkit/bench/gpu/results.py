"""The result of a step, kept as one JSON file; a step with a result is not run again."""

from pathlib import Path
from typing import Literal

import msgspec

from ptexport.runtime.errors import DataError, reason
from ptexport.toolkit.store.files import write_whole

STEPS = "steps"
"""Folder of the results, in the folder of the proof."""

Status = Literal["passed", "failed", "not run"]


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that a step found out.

    Attributes:
        what: what was examined: a setting, a size, a check.
        ok: whether it is as it should be.
        said: finding in words.
        values: measured numbers, by name with the unit.
    """

    what: str
    ok: bool
    said: str = ""
    values: dict[str, float] = {}


class StepResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The result of a step.

    Attributes:
        name: name of the step.
        kind: module that ran.
        provider: execution provider that was asked for.
        status: whether everything was as it should be.
        why: one line: why the step failed or did not run; "" if it passed.
        seconds: how long it ran.
        findings: what it found before it ended, however it ended.
        basis: what it holds for: the card, ONNX Runtime and the bundle.
    """

    name: str
    kind: str
    provider: str
    status: Status
    why: str
    seconds: float
    findings: list[Finding] = []
    basis: str = ""

    @property
    def line(self) -> str:
        """The result in one line."""
        why = f": {self.why}" if self.why else ""
        return f"{self.name}: {self.status}, {self.seconds:.1f} s{why}"

    def write(self, out: Path) -> None:
        """Write the result into the folder of a proof.

        Raises:
            OutputError: the file cannot be written.
        """
        encoded = msgspec.json.format(msgspec.json.encode(self), indent=1)
        write_whole(path_of(out, self.name), encoded + b"\n", force=True)


def path_of(out: Path, name: str) -> Path:
    """Return the file of a step's result."""
    return out / STEPS / f"{name}.json"


def read_result(out: Path, name: str) -> StepResult | None:
    """Read the result of a step; None: it has none.

    Raises:
        DataError: the file is not a result of this version.
    """
    path = path_of(out, name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=StepResult)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as e:
        raise DataError(f"{path}: is not a result of this version ({reason(e)}); remove it") from e
