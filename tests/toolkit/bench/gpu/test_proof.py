"""The runner and the proof: limits, failures, what is kept, exit codes, reasons and the page; without a GPU."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from commands import ptexport
from tiny import Quiet

from ptexport.runtime.errors import BenchError, DataError
from ptexport.runtime.ort.cuda_driver import Gpu
from ptexport.toolkit.bench.gpu import proof, runner
from ptexport.toolkit.bench.gpu.proof import Proof, ProofConfig, prove
from ptexport.toolkit.bench.gpu.reasons import Device, why_not
from ptexport.toolkit.bench.gpu.results import Finding, StepResult, read_result
from ptexport.toolkit.bench.gpu.runner import run_step
from ptexport.toolkit.bench.gpu.steps import Job, Step, given_case, list_steps, made_cases
from ptexport.toolkit.bench.report import BenchReport

CHILD = """
import json, subprocess, sys, time
kind, job = sys.argv[1], json.loads(sys.argv[2])
print(json.dumps({"what": "first", "ok": kind != "wrong", "said": "is as it is", "values": {"ms": 1.5}}), flush=True)
if kind == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    open(job["out"], "w").write(str(child.pid))
    print('{"what": "cut o', end="", flush=True)
    time.sleep(300)
if kind == "crashes":
    import os, signal
    print("Out of luck", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
if kind == "exits":
    sys.exit("provider cuda: is not for you; leave it")
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs CHILD in place of the module of each step."""
    (tmp_path / "played_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(runner, "_CHILD", "played_child")
    (tmp_path / "steps").mkdir()


def step(kind: str, **job: str) -> Step:
    return Step(name=kind, kind=kind, limit_s=60, job=Job(provider="cuda", **job))


@pytest.mark.usefixtures("child")
def test_a_step_is_killed_at_its_limit_with_what_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    result = run_step(step("hangs", out=str(pid_file)), tmp_path, limit_s=1.5)
    assert time.monotonic() - started < 20
    assert (result.status, result.why) == ("failed", "was killed after 2 s, 1 findings were kept")
    assert [finding.values for finding in result.findings] == [{"ms": 1.5}], "the line that was cut off is left out"
    assert gone(int(pid_file.read_text()))
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    assert not gone(other.pid), "a process of others"
    other.kill()
    other.wait()


def gone(pid: int) -> bool:
    """Wait a little until a process has ended; an ended child of nobody is a zombie until it is reaped."""
    for _ in range(20):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize(
    ("kind", "status", "why"),
    [
        ("passes", "passed", ""),
        ("wrong", "failed", "first: is as it is"),
        ("crashes", "failed", "Out of luck (signal 11)"),
        ("exits", "failed", "provider cuda: is not for you; leave it (exit code 1)"),
    ],
)
def test_how_a_step_ends(kind: str, status: str, why: str, tmp_path: Path) -> None:
    result = run_step(step(kind), tmp_path, limit_s=60)
    assert (result.status, result.why, len(result.findings)) == (status, why, 1)
    result.write(tmp_path)
    assert read_result(tmp_path, kind) == result
    (tmp_path / "steps" / f"{kind}.json").write_text("{}")
    with pytest.raises(DataError, match="not a result of this version"):
        read_result(tmp_path, kind)


GPU = Gpu(name="A card", compute_capability="9.0", memory_bytes=8 << 30, driver_cuda="13.0")
CARD = Device(
    provider="cuda", gpu=GPU, lacking=None, no_tensorrt="provider tensorrt: libnvinfer.so.10 cannot be loaded"
)


class Played:
    """A card on which every step passes, but for those whose names start with a word of `bad`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, device: Device = CARD) -> None:
        self.ran: list[str] = []
        self.bad: tuple[str, ...] = ()
        monkeypatch.setattr(proof, "run_step", self.run)
        monkeypatch.setattr(Device, "find", classmethod(lambda cls, provider: device))

    def run(self, step: Step, out: Path, *, limit_s: float) -> StepResult:
        self.ran.append(step.name)
        if step.kind == "reference":
            Path(step.job.out).mkdir(exist_ok=True)
            (Path(step.job.out) / "reference.npy").touch()
        bad = step.name.startswith(self.bad) if self.bad else False
        return StepResult(
            name=step.name,
            kind=step.kind,
            provider=step.job.provider,
            status="failed" if bad else "passed",
            why="is broken" if bad else "",
            seconds=limit_s,
            findings=[Finding(what="first", ok=not bad, values={"ms": 2.0})],
        )


def prove_it(out: Path, *bundles: Path, only: tuple[str, ...] = (), seconds: float | None = None) -> Proof:
    config = ProofConfig(out=out, bundles=bundles, only=only, seconds=seconds, provider="cuda", command="ptexport")
    return prove(config, Quiet())


def test_a_card_on_which_all_passes_is_proved(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what has a result is kept, unless it is asked for."""
    played = Played(monkeypatch)
    done = prove_it(tmp_path / "out", case)
    assert done.unproved is None
    assert done.report.verdict[0].startswith("A card is proved")
    assert [result.status for result in done.results] == ["passed"] * len(played.ran)
    assert {name.split("-")[0] for name in played.ran} == {
        *("doctor", "peak", "reference", "place", "parity", "graph", "buffers", "start", "speed", "compiled")
    }
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "A card is proved" in page
    assert "CUDA graphs" in page
    assert BenchReport.read(tmp_path / "out" / "report") == done.report
    played.ran.clear()
    assert prove_it(tmp_path / "out", case).unproved is None
    assert played.ran == []
    prove_it(tmp_path / "out", case, only=("graph-*", "peak"))
    assert played.ran == ["peak", "graph-tiny-fp32-18"]
    played.ran.clear()
    other = dataclasses.replace(CARD, gpu=msgspec.structs.replace(GPU, name="Another card"))
    monkeypatch.setattr(Device, "find", lambda provider: other)
    assert prove_it(tmp_path / "out", case).report.verdict[0].startswith("Another card is proved")
    assert len(played.ran) == len(done.results), "what the first card did proves nothing"
    gone = dataclasses.replace(other, lacking="no driver")
    monkeypatch.setattr(Device, "find", lambda provider: gone)
    kept = prove_it(tmp_path / "out", case, only=("peak",))
    assert {result.status for result in kept.results} == {"passed"}, "none is lost to a call that cannot run it"
    with pytest.raises(BenchError, match="--only nothing: no such step, need one of doctor, peak"):
        prove_it(tmp_path / "out", case, only=("nothing",))


@pytest.mark.parametrize(("bad", "proved"), [("graph", True), ("speed", True), ("place", False), ("parity", False)])
def test_a_failure_is_passed_over_and_placement_and_parity_decide(
    bad: str, proved: bool, case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Played(monkeypatch)
    played.bad = (bad,)
    done = prove_it(tmp_path / "out", case)
    assert (done.unproved is None) == proved
    assert f"{bad}-tiny" in " ".join(done.report.verdict[1:])
    assert played.ran[-1] == "compiled-tiny-250", "the last one"
    assert proved or done.unproved == f"{bad}-tiny-fp32-18: is broken"


def test_without_time_left_a_step_waits_for_the_next_call(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Played(monkeypatch)
    done = prove_it(tmp_path / "out", case, seconds=1)
    assert played.ran == []
    assert {result.status for result in done.results} == {"not run"}
    assert "the time of this call was over; call again" in {result.why for result in done.results}
    assert done.unproved is not None
    assert prove_it(tmp_path / "out", case, seconds=30).unproved is None
    assert max(result.seconds for result in prove_it(tmp_path / "out", case).results) <= 30
    played.bad = ("doctor", "peak")
    first = prove_it(tmp_path / "cut", case, only=("doctor",), seconds=20).results[0]
    assert first.status == "not run", "killed after all the time there was, and not at its own limit"
    assert first.why.startswith("was cut off after 20 s")
    own = {result.name: result for result in prove_it(tmp_path / "out", case, only=("peak",), seconds=90).results}
    assert own["peak"].status == "failed", "at its own limit"


def test_no_proof_without_parity_of_an_fp32_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch)
    done = prove_it(tmp_path / "out", only=("doctor", "peak"))
    assert played.ran == ["doctor", "peak"]
    assert done.unproved == "place-smollm2-fp32-18: has not run"


def test_a_machine_without_a_gpu_says_why_in_one_line_a_step(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not played; the control is the same call where a card is played."""
    out, given = str(tmp_path / "out"), ("--bundles", str(case))
    if Device.find("cuda").lacking is None:
        pytest.skip("this machine has a GPU")
    said = ptexport("bench", "gpu", "--out", out, *given)
    assert said.returncode == 1
    lines = said.stdout.splitlines()
    steps = list_steps([given_case(case)], "cuda", tmp_path / "out")
    for named, line in zip(steps, lines, strict=False):
        assert line.startswith(f"{named.name}: not run, 0.0 s: provider cuda: ")
    assert lines[len(steps)].startswith("No GPU is proved: provider cuda: ")
    assert "no GPU is proved" in said.stderr
    assert "No GPU is proved" in (tmp_path / "out" / "report" / "report.md").read_text()
    Played(monkeypatch)
    said = ptexport("bench", "gpu", "--out", out, *given)
    assert said.returncode == 0
    assert "A card is proved" in said.stdout
    kept = json.loads((tmp_path / "out" / "steps" / "doctor.json").read_text())
    assert kept["status"] == "passed"


def test_a_rehearsal_proves_nothing(case: Path, tmp_path: Path) -> None:
    """Its steps run, and their results do not stand for those of a GPU."""
    given = ("--out", str(tmp_path / "out"), "--bundles", str(case), "--only", "doctor,place-*")
    said = ptexport("bench", "gpu", *given, "--provider", "cpu")
    assert said.returncode == 1
    assert [line.split(",")[0] for line in said.stdout.splitlines()[:2]] == [
        "doctor: passed",
        "place-tiny-fp32-18: passed",
    ]
    assert "is a rehearsal" in said.stderr
    config = ProofConfig(out=tmp_path / "out", bundles=[case], only=["peak"], seconds=1, provider="cuda", command="")
    assert [result.name for result in prove(config, Quiet()).results] == ["peak"]


def test_what_a_step_needs(case: Path, tmp_path: Path) -> None:
    by_name = {each.name: each for each in list_steps([given_case(case)], "cuda", tmp_path)}
    assert why_not(by_name["place-tiny-fp32-18"], CARD) is None
    assert why_not(by_name["speed-tiny-28"], CARD) is None
    assert "see the step reference" in str(why_not(by_name["parity-tiny-fp32-18"], CARD))
    (case / "run").unlink()
    assert "has no run" in str(why_not(by_name["speed-tiny-28"], CARD))
    made = {each.name: each for each in list_steps(made_cases(tmp_path), "cuda", tmp_path)}
    assert "see the step inputs" in str(why_not(made["place-minilm-fp32-18"], CARD))
    assert "libnvinfer" in str(why_not(made["engine-minilm-tensorrt-fp32-18"], CARD))


def test_the_steps_of_the_issue(tmp_path: Path) -> None:
    steps = list_steps(made_cases(tmp_path), "cuda", tmp_path)
    assert all(0 < each.limit_s <= 1800 for each in steps)
    sizes = {size for each in steps if each.kind == "speed" for size in each.job.sizes}
    assert sizes == {(batch, tokens) for batch in (1, 8, 32, 128) for tokens in (28, 100, 250)}
    essential = {each.name for each in steps if each.essential}
    assert {name.split("-", 1)[0] for name in essential} == {"doctor", "place", "parity"}
    assert all("fp32" in name for name in essential - {"doctor"})


def test_a_given_folder(case: Path, llama_bundle: Path, tmp_path: Path) -> None:
    assert list(given_case(case).bundles) == ["fp32-18"]
    alone = given_case(llama_bundle)
    assert alone.bundles == {llama_bundle.resolve().name: llama_bundle.resolve()}
    assert alone.fp32 == frozenset(alone.bundles)
    with pytest.raises(BenchError, match="has no bundle"):
        given_case(tmp_path / "tiny" / "run")


def test_make_calls_the_command(tmp_path: Path) -> None:
    said = subprocess.run(
        [
            "make",
            "--no-print-directory",
            "--dry-run",
            "gpu-proof",
            f"OUT={tmp_path}",
            "BUNDLES=a,b",
            "ONLY=parity-*",
            "PTEXPORT=ptexport",
        ],
        cwd=Path(__file__).parents[4],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "MAKEFLAGS": ""},
    )
    assert said.stdout.strip() == f"ptexport bench gpu --out {tmp_path} --bundles a,b --only 'parity-*'"
