"""The speed and quality benches on tiny bundles."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from commands import ptexport
from tiny import ROWS, Quiet

from ptexport.runtime import Engine
from ptexport.runtime.bundle.folder import MANIFEST, Bundle
from ptexport.runtime.errors import BenchError
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.bench import interleaved, workers
from ptexport.toolkit.bench.interleaved import (
    Contender,
    RoundPlan,
    SpeedResults,
    SystemResult,
    Workloads,
    measure,
)
from ptexport.toolkit.bench.quality.quality import BATCHES, draw_batch
from ptexport.toolkit.bench.quality.report import describe_calls
from ptexport.toolkit.bench.ratio import LatencyRatio
from ptexport.toolkit.bench.speed import speed
from ptexport.toolkit.bench.speed.report import Cost, _verdict
from ptexport.toolkit.bench.workers import SYSTEM_WORKER, Hardware, Worker, bundle_worker

HARDWARE = Hardware(threads=1)


def test_a_system_with_other_logits_is_not_timed(
    llama_bundle: Path, bert_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a system that cannot be opened is left out with its message; the first one is required."""
    monkeypatch.setattr(interleaved, "PAUSE_S", 0.0)
    monkeypatch.setattr(interleaved, "SAMPLE_S", 0.0)
    contenders = [
        Contender(name="first", start=bundle_worker("first", str(llama_bundle), HARDWARE), tolerance=None),
        Contender(name="same", start=bundle_worker("same", str(llama_bundle), HARDWARE), tolerance=1e-6),
        Contender(name="other", start=bundle_worker("other", str(bert_bundle), HARDWARE), tolerance=1e-2),
        Contender(name="none", start=bundle_worker("none", "nowhere", HARDWARE), tolerance=None),
    ]
    calls: list[int] = []

    def batches(call: int) -> list[str]:
        calls.append(call)
        return [f"story {call}"]

    class Rounds(Quiet):
        """Progress that keeps the last number of rounds."""

        def rows(self, done: int, total: int | None) -> None:
            self.last = done, total

    progress = Rounds()
    workloads = Workloads(batches={"a text": batches}, compared=[["slow", "bright"]])
    plan = RoundPlan(rounds=2, seconds=60, starts=1)
    results = measure(contenders, workloads, plan, HARDWARE, progress)
    assert list(results.systems) == ["first", "same"]
    assert "systems with other predictions are not timed" in results.left_out["other"]
    assert "nowhere: no such folder" in results.left_out["none"]
    same = results.systems["same"]
    assert (same.max_abs_diff, same.flips, len(same.seconds["a text"]), len(same.start_s)) == (0, 0, 2, 1)
    assert same.file_bytes == sum(path.stat().st_size for path in files_of(llama_bundle))
    assert 0 < same.task_bytes < same.file_bytes
    assert 20e6 < same.resident_bytes <= same.peak_bytes + 20e6
    assert min(results.slowdowns("same", "a text")) > 0
    assert all(rate[0] > 1e8 for rate in results.peak_rates.values())
    assert (calls, progress.last) == ([0, 1, 2], (2, 2))
    with pytest.raises(BenchError, match="nowhere"):
        measure(contenders[-1:], workloads, plan, HARDWARE, Quiet())


def test_a_process_keeps_to_its_cpus_and_becomes_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import json, os, sys; print(json.dumps([__name__, len(os.sched_getaffinity(0)), sys.argv[1:]]))"
    (tmp_path / "tells.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("tells", "tells", ["a", "b"], threads=1) as worker:
        assert worker.receive() == ["__main__", 1, ["a", "b"]]
        monkeypatch.setattr(workers, "TIMEOUT_S", 0.01)
        (tmp_path / "hangs.py").write_text("import time; time.sleep(100)")
        with (
            Worker("hangs", "hangs", [], threads=1) as hanging,
            pytest.raises(BenchError, match="hangs: sent no response"),
        ):
            hanging.receive()


def files_of(bundle: Path) -> list[Path]:
    return [bundle / MANIFEST, *(bundle / name for name in Bundle.open(bundle).manifest.files)]


def test_a_worker_has_the_logits_of_the_engine_and_reports_why_it_ends(llama_bundle: Path) -> None:
    texts = ["slow", "the film was bright"]
    with bundle_worker("tiny", str(llama_bundle), HARDWARE)() as worker:
        worker.receive()
        response = worker.request(texts)
        with pytest.raises(BenchError, match=r"tiny: its process ended with 1 \(text 0: got 2 strings, need a string"):
            worker.request([["a pair", "that the template does not take"]])
    with Engine.open(llama_bundle, threads=1) as engine:
        np.testing.assert_allclose(response["logits"], engine.logits(texts), atol=1e-6)
    assert response["seconds"] > 0
    with (
        Worker("nobody", SYSTEM_WORKER, ["serve", "nobody", "", "x", "1", "cpu"], threads=1) as worker,
        pytest.raises(BenchError, match=r"nobody: its process ended with 1 .*No module named .*nobody"),
    ):
        worker.receive()


def test_a_sample_of_short_calls_has_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as take the first system SAMPLE_S, at most MOST_CALLS, the same for all; the sample is their median."""
    monkeypatch.setattr(interleaved, "PAUSE_S", 0.0)

    class Slower:
        """Takes one millisecond more each call."""

        def __init__(self, first_ms: float) -> None:
            self.ms, self.calls = first_ms, []  # type: ignore[var-annotated]

        def request(self, texts: list[str]) -> dict[str, float]:
            self.calls += texts
            self.ms += 1
            return {"seconds": self.ms / 1000, "peak_bytes": len(self.calls)}

    plan = RoundPlan(rounds=2, seconds=60, starts=1)
    for first_ms, n_calls in ((24, 4), (2, interleaved.MOST_CALLS), (500, 1)):
        workers = {"ours": Slower(first_ms), "theirs": Slower(900)}
        rounds = list(interleaved._run_rounds(workers, lambda number: [str(number)], plan, {}))  # type: ignore[arg-type]
        assert workers["ours"].calls == workers["theirs"].calls == [str(number) for number in range(1 + 2 * n_calls)]
        middle_ms = first_ms + 1 + (n_calls + 1) / 2
        assert [samples["ours"].seconds for samples in rounds] == pytest.approx(
            [middle_ms / 1000, (middle_ms + n_calls) / 1000]
        )
        assert rounds[-1]["theirs"].peak_bytes == 1 + 2 * n_calls


def test_a_call_has_no_row_twice_where_there_are_enough() -> None:
    rows = [Row(text=f"text {number}", label="a", where="") for number in range(32)]
    for call in range(5):
        assert sorted(draw_batch(rows, 32, call)) == sorted(row.text for row in rows)
    assert draw_batch(rows, 32, 0) != draw_batch(rows, 32, 1)
    assert len(draw_batch(rows[:3], 32, 0)) == 32
    assert describe_calls(BATCHES, 32).endswith("but once per call.")
    assert describe_calls(BATCHES, 31).endswith("once per call; calls of 32 rows, more than the file has, repeat some.")


def test_quality_by_the_command(
    llama_bundle: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interleaved, "PAUSE_S", 0.0)
    second = tmp_path / "second"
    shutil.copytree(llama_bundle, second)
    out = tmp_path / "report"
    arguments = ("bench", "quality", llama_bundle, second, "--data", rows_file, "--out", out, "--quick", "--threads", 1)
    done = ptexport(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    engine = Engine.open(llama_bundle)
    right = sum(p.label == label for p, (_, label) in zip(engine.predict([t for t, _ in ROWS]), ROWS, strict=True))
    figures = {figure["name"]: figure for figure in record["figures"]}
    assert figures["accuracy/reviews, fp32"]["value"] == pytest.approx(100 * right / len(ROWS))
    assert figures["accuracy/second, fp32"] == {**figures["accuracy/reviews, fp32"], "name": "accuracy/second, fp32"}
    assert record["verdict"][0].startswith(
        "second in fp32 and reviews in fp32 show no measurable difference in accuracy (-"
    )
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md"]
    assert all(text not in (out / "report.html").read_text() for text, _ in ROWS)
    again = ptexport(*arguments)
    assert (again.returncode, "--force" in again.stderr) == (1, True)
    twice = ptexport("bench", "quality", second, second, "--data", rows_file, "--out", tmp_path / "x")
    assert "two systems have the name 'second, fp32'" in twice.stderr


def test_a_speed_report_names_the_bundles(llama_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleaved, "PAUSE_S", 0.0)
    monkeypatch.setattr(speed, "QUICK", RoundPlan(rounds=2, seconds=60, starts=1))
    monkeypatch.setattr(speed, "QUICK_SIZES", ((2, 8),))
    second = tmp_path / "second"
    shutil.copytree(llama_bundle, second)
    manifest = msgspec.structs.replace(Bundle.open(llama_bundle).manifest, name="other")
    (second / MANIFEST).write_bytes(manifest.to_json())
    config = speed.SpeedConfig(
        bundle=llama_bundle,
        against=[str(second)],
        run=None,
        threads=1,
        provider="cpu",
        quick=True,
        command="ptexport bench speed",
    )
    report = speed.bench_speed(config, lambda n_ids: Cost(1000 * n_ids, 1000), Quiet())
    first, other = (Bundle.open(path).manifest.digest for path in (llama_bundle, second))
    assert report.bundles == {"ptexport, fp32": first, "second, fp32": other}
    assert first != other
    assert report.tables[0].columns[:3] == ["system", "latency (ms)", "throughput (texts/s)"]
    assert sorted(row[0] for row in report.tables[0].rows) == sorted(report.bundles)
    assert report.tables[1].columns[:2] == ["system", "peak memory (MB)"]
    assert report.verdict[0].startswith("second in fp32 ")
    latency, memory = report.plots
    assert sorted(label.partition(":")[0] for label in latency.series[0].labels) == sorted(report.bundles)
    assert latency.series[0].x == sorted(latency.series[0].x), "the fastest first"
    assert latency.series[0].labels[latency.highlight or 0].startswith("ptexport, fp32: ")
    assert memory.x_label == "peak memory (MB)"
    assert not report.left_out


def test_the_verdict_states_where_the_bundle_is_slower() -> None:
    def system(
        small: list[float], large: list[float], *, start_s: float, megabytes: int, setting: str = "fp32, eager"
    ) -> SystemResult:
        size = megabytes * 1_000_000
        return SystemResult(
            setting=setting,
            file_bytes=size,
            task_bytes=size,
            max_abs_diff=0,
            flips=0,
            seconds={"1x28": small, "8x28": large},
            start_s=[start_s],
            resident_bytes=size,
            peak_bytes=size,
        )

    one = [1.0, 1.0, 1.0]
    others = {
        "fast": system([0.5] * 3, [0.4] * 3, start_s=1, megabytes=80),
        "close": system([0.9, 1.5, 1.5], [0.5, 0.8, 1.25], start_s=1.9, megabytes=95),
        "slow": system([2.0] * 3, [2.0] * 3, start_s=9, megabytes=900, setting="bf16"),
        "mixed": system([1.1, 1.2, 1.3], [0.5, 0.8, 0.8], start_s=9, megabytes=900),
    }
    systems = {"ours": system(one, one, start_s=2, megabytes=100), **others}
    sizes = [(1, 28), (8, 28)]
    found = _verdict(SpeedResults(systems=systems, left_out={}, peak_rates={}), sizes)
    assert found == [
        "fast is 2.00 to 2.50 times faster than the bundle (95 % intervals within 2.00 to 2.50) at every size.",
        (
            "fast needs less than the bundle: 1.00 s instead of 2.00 s to its first prediction, 80 MB instead of 100 "
            "MB of peak memory, 80 MB instead of 100 MB of files, 80 MB instead of 100 MB for a new task."
        ),
        (
            "mixed is 1.20 times slower than the bundle (95 % interval 1.10 to 1.30) at 1 x 28 and 1.25 times faster "
            "(95 % interval 1.25 to 2.00) at 8 x 28."
        ),
        (
            "close and the bundle show no measurable difference in latency at any size (95 % intervals within 0.50 to "
            "1.50)."
        ),
        "slow (bf16) is 2.00 times slower than the bundle (95 % intervals within 2.00 to 2.00) at every size.",
    ]
    alone = SpeedResults(systems={"ours": systems["ours"]}, left_out={}, peak_rates={})
    assert _verdict(alone, sizes) == [
        "The bundle has a latency of 1000.0 ms at 1 x 28, 1000.0 ms at 8 x 28; add other systems with --against."
    ]


def test_slower_and_faster_are_ratios_above_1() -> None:
    """And are said only if the interval excludes 1."""
    for slowdowns, word, words, interval in (
        ([1.1, 1.2, 1.3], "slower", "1.20 times slower", "1.10 to 1.30"),
        ([0.5, 0.8, 0.8], "faster", "1.25 times faster", "1.25 to 2.00"),
        ([0.97, 1.2, 1.3], "same", "no measurable difference", "0.97 to 1.30"),
        ([0.5, 0.8, 1.0], "same", "no measurable difference", "0.50 to 1.00"),
    ):
        ratio = LatencyRatio.of(slowdowns)
        assert (ratio.word, ratio.words, ratio.interval) == (word, words, interval)


def test_what_speed_refuses(llama_bundle: Path, bert_run: Path, tmp_path: Path) -> None:
    def refusal(*options: object) -> str:
        done = ptexport("bench", "speed", llama_bundle, "--out", tmp_path / "report", *options)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        return done.stderr

    assert "not a system or a folder; give one of peft, " in refusal("--against", "peftt")
    assert "needs the run that the bundle was exported from; add --run RUN" in refusal("--against", "peft")
    assert "give the run it was exported from" in refusal("--against", "peft", "--run", bert_run)
    assert not (tmp_path / "report").exists()
