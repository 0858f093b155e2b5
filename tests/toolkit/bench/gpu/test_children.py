"""Every step's process on the CPU, which stands in for a GPU, with tiny bundles."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from commands import ptexport

from ptexport.runtime.errors import BenchError
from ptexport.runtime.ort.providers import choose_provider
from ptexport.toolkit.bench import interleaved
from ptexport.toolkit.bench.gpu import (
    buffers,
    child,
    doctor,
    graph,
    inputs,
    parity,
    peak,
    place,
    reference,
    speed,
    start,
)
from ptexport.toolkit.bench.gpu.reasons import REFERENCE
from ptexport.toolkit.bench.gpu.results import StepResult
from ptexport.toolkit.bench.gpu.runner import run_step
from ptexport.toolkit.bench.gpu.speed import _latencies
from ptexport.toolkit.bench.gpu.steps import Job, Step
from ptexport.toolkit.bench.report import BenchReport, Figure, Machine

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's, which the steps' processes ignore too


def job_of(case: Path, **more: object) -> Job:
    return Job(provider="cpu", case=str(case), bundle=str(case / "fp32-18"), out=str(case.parent / "reference"), **more)


def test_the_machine_and_its_rates() -> None:
    assert {"python", "cpus", "ONNX Runtime"} <= {finding.what for finding in doctor.measure(Job(provider="cpu"))}
    rates = {finding.what: finding.values["10^9 per second"] for finding in peak.measure(Job(provider="cpu"))}
    assert set(rates) == {"sgemm_flops", "int8_ops", "copy_bytes"}
    assert min(rates.values()) > 0.1


def test_placement_and_golden_rows(case: Path) -> None:
    placed, golden = place.measure(job_of(case))
    assert placed.ok
    assert 0 <= golden.values["largest |Δlogit|"] < 1e-3


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_parity_with_transformers(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The control: one expected logit is changed, and the bundle alone is still the same as among others."""
    case = tmp_path / family
    case.mkdir()
    (case / "run").symlink_to(request.getfixturevalue(f"{family}_run"))
    (case / "fp32-18").symlink_to(request.getfixturevalue(f"{family}_bundle"))
    job = job_of(case)
    (made,) = reference.measure(job)
    assert made.values["texts"] > 50
    assert [finding.ok for finding in parity.measure(job)] == [True, True, True]
    expected = np.load(tmp_path / "reference" / REFERENCE)
    expected[3, 0] += 0.01
    np.save(tmp_path / "reference" / REFERENCE, expected)
    assert [finding.ok for finding in parity.measure(job)] == [False, True, True]


def test_logits_that_depend_on_neighbours_are_found(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(case)
    list(reference.measure(job))
    usual = child.Scorer.logits
    monkeypatch.setattr(child.Scorer, "logits", lambda self, texts: usual(self, texts) + 0.01 * (len(texts) == 1))
    beside, alone, twice = parity.measure(job)
    assert (beside.ok, alone.ok, twice.ok) == (True, False, True)


def test_a_cuda_graph_needs_cuda_and_a_replay_must_answer_new_inputs(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(case)
    *off, on = graph.measure(job)
    assert [finding.what for finding in off] == ["off, 1 x 28", "off, 8 x 28", "off, 32 x 100"]
    assert all(finding.values["ms"] > 0 for finding in off)
    assert (on.ok, "cuda_graph" in on.said) == (False, True)

    monkeypatch.setattr(graph, "provider_of", lambda job, **_: child.provider_of(job))  # as if it were taken
    assert [finding.ok for finding in graph.measure(job)] == [True] * 6

    usual = graph._logits
    calls: list[object] = []

    def replays_the_first(opened: object, shape: tuple[int, int]) -> list[np.ndarray]:  # type: ignore[type-arg]
        calls.append(shape)
        logits = usual(opened, shape)  # type: ignore[arg-type]
        return logits if len(calls) <= len(graph.SHAPES) else [logits[0]] * 3

    monkeypatch.setattr(graph, "_logits", replays_the_first)
    assert [finding.ok for finding in graph.measure(job)] == [True] * 3 + [False] * 3


def test_buffers(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(buffers.measure(job_of(case)))
    assert [finding.ok for finding in found] == [True] * 4
    assert all(finding.values["ms"] > 0 for finding in found)
    monkeypatch.setattr(buffers, "difference", lambda got, expected: float("inf"))
    assert [finding.ok for finding in buffers.measure(job_of(case))] == [True, False] * 2


def test_without_pinned_memory_the_rest_is_measured(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider is played by the CPU; with memory that is played too, all is measured."""
    job = msgspec.structs.replace(job_of(case), provider="cuda")
    monkeypatch.setattr(buffers, "provider_of", lambda job: choose_provider("cpu"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = list(buffers.measure(job))
    assert [finding.ok for finding in found] == [True, True, False] * 2
    assert "finds no GPU" in found[2].said
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(buffers, "_pinned", lambda ids: ids)
    assert [finding.ok for finding in buffers.measure(job)] == [True] * 6


def test_start_and_memory(case: Path) -> None:
    found = list(start.measure(job_of(case)))
    assert [finding.what for finding in found] == ["start 1", "start 2", "start 3"]
    assert all(0 < finding.values["first prediction (s)"] < 60 for finding in found)
    assert all("GPU memory (MB)" not in finding.values for finding in found)


def test_inputs_are_made_and_a_refused_export_is_passed_over(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands run in this process, which has loaded PyTorch; what exists is kept."""
    monkeypatch.setattr(inputs, "ptexport", ptexport)
    place_ = tmp_path / "made"
    job = Job(provider="cpu", case=str(place_), model=str(llama), variants=("int8-18", "fp32-18"))
    run, refused, made = inputs.measure(job)
    assert (run.ok, refused.ok, made.ok) == (True, False, True)
    assert "target cuda: got precision int8" in refused.said
    assert (place_ / "fp32-18" / "manifest.json").is_file()
    before = (place_ / "fp32-18" / "manifest.json").stat().st_mtime_ns
    assert [finding.ok for finding in inputs.measure(job)] == [True, False, True]
    assert (place_ / "fp32-18" / "manifest.json").stat().st_mtime_ns == before


def step_of(case: Path, kind: str, **more: object) -> Step:
    return Step(name=f"{kind}-tiny", kind=kind, limit_s=300, job=job_of(case, **more))


def run(step: Step, out: Path) -> StepResult:
    (out / "steps").mkdir(parents=True, exist_ok=True)
    return run_step(step, out, limit_s=step.limit_s)


def test_a_process_of_its_own_finds_the_same(case: Path, tmp_path: Path) -> None:
    result = run(step_of(case, "place"), tmp_path / "out")
    assert (result.status, result.why) == ("passed", "")
    assert [finding.what for finding in result.findings] == ["placement", "golden rows"]
    broken = shutil.copytree((case / "fp32-18").resolve(), tmp_path / "broken" / "fp32-18")
    (broken / "tokenizer.json").write_text("{}")
    (tmp_path / "broken" / "run").mkdir()
    result = run(step_of(tmp_path / "broken", "place"), tmp_path / "out")
    assert result.status == "failed"
    assert "tokenizer.json" in result.why
    assert result.why.endswith("(exit code 1)")


def test_tensorrt_is_asked_for_by_name(case: Path, tmp_path: Path) -> None:
    result = run(step_of(case, "engine"), tmp_path / "out")
    assert result.status == "failed"
    assert "tensorrt" in result.why.lower()


def test_speed_at_the_given_sizes(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pauses, and the command in this process."""
    monkeypatch.setattr(interleaved, "PAUSE_S", 0.0)
    monkeypatch.setattr(interleaved, "SAMPLE_S", 0.0)
    monkeypatch.setattr(speed, "ptexport", ptexport)
    timed, verdict = speed.measure(job_of(case, sizes=((2, 8),)))
    assert timed.what == "ptexport, fp32, 2x8"
    assert 0 < timed.values["share of product rate"] < 1
    assert "at 2 x 8" in verdict.said
    with pytest.raises(BenchError, match="need more to measure"):
        list(speed.measure(job_of(case, sizes=((2, 100_000),))))
    said = ptexport("bench", "speed", case / "fp32-18", "--sizes", "8", "--out", case / "report")
    assert (said.returncode, "--sizes 8: need texts x tokens" in said.stderr) == (2, True)


def test_speed_beside_rivals_in_lower_precision(case: Path, tmp_path: Path) -> None:
    """Sizes as asked for; what cannot be measured is a failure with its reason."""
    more = {"rivals": ("peft-bf16", "transformers-fp16"), "sizes": ((1, 8), (2, 8)), "variants": ("nowhere",)}
    step = step_of(case, "speed", **more)
    result = run(step, tmp_path / "out")
    assert result.status == "passed", result.why
    names = {finding.what for finding in result.findings if "ms" in finding.values}
    systems = ("ptexport, fp32", "peft-bf16", "transformers-fp16")
    assert names == {f"{system}, {size}" for system in systems for size in ("1x8", "2x8")}
    shares = [f.values["share of product rate"] for f in result.findings if f.what.startswith("ptexport")]
    assert all(0 < share < 1 for share in shares)


def test_a_share_is_of_the_rate_in_the_systems_precision() -> None:
    """A rate that was not measured gives no share."""
    figures = [("time/ptexport, fp32/2x8", 10.0), ("time/peft-fp16/2x8", 5.0), ("time/peft-bf16/2x8", 5.0)]
    figures += [("work/2x8", 4.0), ("machine/sgemm_flops", 1000.0), ("machine/fp16_flops", 8000.0)]
    machine = Machine(processor="", cpus=1, memory_mb=1, system="", python="", versions={})
    report = BenchReport(
        kind="speed",
        title="",
        made="",
        command="",
        machine=machine,
        bundles={},
        verdict=[],
        how=[],
        tables=[],
        plots=[],
        figures=[Figure.of(name, [value], "") for name, value in figures],
        left_out={},
    )
    found = list(_latencies(report))
    assert [finding.values.get("share of product rate") for finding in found] == [0.4, 0.1, None]
    assert [finding.values["texts/s"] for finding in found] == [200, 400, 400]
