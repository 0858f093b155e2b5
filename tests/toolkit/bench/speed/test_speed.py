"""Benches of tiny bundles: what is measured is what it is called."""

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
from ptexport.runtime.rows import Row
from ptexport.toolkit.bench import turns, workers
from ptexport.toolkit.bench.quality.quality import _how_timed, _some
from ptexport.toolkit.bench.speed import speed
from ptexport.toolkit.bench.speed.report import Cost, _verdict
from ptexport.toolkit.bench.turns import Contender, Loads, Measured, Plan, Results, bundle_worker, measure
from ptexport.toolkit.bench.workers import WORKER, Hardware, Worker

HARDWARE = Hardware(threads=1)


def test_rows_of_other_answers_are_not_timed(
    llama_bundle: Path, bert_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a system that cannot be opened is left out with what it said; the first one is needed."""
    monkeypatch.setattr(turns, "PAUSE_S", 0.0)
    monkeypatch.setattr(turns, "TURN_S", 0.0)
    contenders = [
        Contender(name="first", start=bundle_worker("first", str(llama_bundle), HARDWARE), tolerance=None),
        Contender(name="same", start=bundle_worker("same", str(llama_bundle), HARDWARE), tolerance=1e-6),
        Contender(name="other", start=bundle_worker("other", str(bert_bundle), HARDWARE), tolerance=1e-2),
        Contender(name="none", start=bundle_worker("none", "nowhere", HARDWARE), tolerance=None),
    ]
    asked: list[int] = []

    def texts(turn: int) -> list[str]:
        asked.append(turn)
        return [f"story {turn}"]

    loads = Loads(texts={"a text": texts}, compared=[["slow", "bright"]])
    told: list[tuple[int, int]] = []
    plan = Plan(rounds=2, seconds=60, starts=1)
    results = measure(contenders, loads, plan, HARDWARE, lambda done, total: told.append((done, total)))
    assert list(results.systems) == ["first", "same"]
    assert "what answers otherwise is not timed" in results.left_out["other"]
    assert "manifest.json: missing" in results.left_out["none"]
    same = results.systems["same"]
    assert (same.max_abs_diff, same.flips, len(same.seconds["a text"]), len(same.start_s)) == (0, 0, 2, 1)
    assert same.file_bytes == sum(path.stat().st_size for path in files_of(llama_bundle))
    assert 0 < same.task_bytes < same.file_bytes
    assert 20e6 < same.resident_bytes <= same.peak_bytes + 20e6
    assert min(results.ratios("same", "a text")) > 0
    assert all(rate[0] > 1e8 for rate in results.ceiling.values())
    assert (asked, told[-1]) == ([0, 1, 2], (2, 2))
    with pytest.raises(BenchError, match="nowhere"):
        measure(contenders[-1:], loads, plan, HARDWARE, lambda done, total: None)


def test_a_process_keeps_to_its_cpus_and_becomes_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "import json, os, sys; print(json.dumps([__name__, len(os.sched_getaffinity(0)), sys.argv[1:]]))"
    (tmp_path / "tells.py").write_text(said)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("tells", "tells", ["a", "b"], threads=1) as worker:
        assert worker.read() == ["__main__", 1, ["a", "b"]]
        monkeypatch.setattr(workers, "TIMEOUT_S", 0.01)
        (tmp_path / "hangs.py").write_text("import time; time.sleep(100)")
        with (
            Worker("hangs", "hangs", [], threads=1) as hanging,
            pytest.raises(BenchError, match="hangs: has not answered"),
        ):
            hanging.read()


def files_of(bundle: Path) -> list[Path]:
    return [bundle / MANIFEST, *(bundle / name for name in Bundle.open(bundle).manifest.files)]


def test_a_worker_answers_as_the_engine_does_and_says_why_it_ends(llama_bundle: Path) -> None:
    texts = ["slow", "the film was bright"]
    with bundle_worker("tiny", str(llama_bundle), HARDWARE)() as worker:
        worker.read()
        answer = worker.ask(texts)
        with pytest.raises(BenchError, match=r"tiny: its process ended with 1 \(text 0: got 2 strings, need a string"):
            worker.ask([["a pair", "that the template does not take"]])
    with Engine.open(llama_bundle, threads=1) as engine:
        np.testing.assert_allclose(answer["logits"], engine.logits(texts), atol=1e-6)
    assert answer["seconds"] > 0
    with (
        Worker("nobody", WORKER, ["serve", "nobody", "", "x", "1", "cpu"], threads=1) as worker,
        pytest.raises(BenchError, match=r"nobody: its process ended with 1 .*No module named .*nobody"),
    ):
        worker.read()


def test_short_calls_are_several_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as take TURN_S of the first system's time, at most MOST_CALLS, the same for all; their median counts."""
    monkeypatch.setattr(turns, "PAUSE_S", 0.0)

    class Slower:
        """Takes one millisecond more each call."""

        def __init__(self, first_ms: float) -> None:
            self.ms, self.asked = first_ms, []  # type: ignore[var-annotated]

        def ask(self, texts: list[str]) -> dict[str, float]:
            self.asked += texts
            self.ms += 1
            return {"seconds": self.ms / 1000, "peak_bytes": len(self.asked)}

    plan = Plan(rounds=2, seconds=60, starts=1)
    for first_ms, n_calls in ((24, 4), (2, turns.MOST_CALLS), (500, 1)):
        workers = {"ours": Slower(first_ms), "theirs": Slower(900)}
        seen = list(turns._take_turns(workers, lambda number: [str(number)], plan, {}))  # type: ignore[arg-type]
        assert workers["ours"].asked == workers["theirs"].asked == [str(number) for number in range(1 + 2 * n_calls)]
        middle_ms = first_ms + 1 + (n_calls + 1) / 2
        assert [turn["ours"].seconds for turn in seen] == pytest.approx(
            [middle_ms / 1000, (middle_ms + n_calls) / 1000]
        )
        assert seen[-1]["theirs"].peak_bytes == 1 + 2 * n_calls


def test_a_call_has_no_row_twice_where_there_are_enough() -> None:
    rows = [Row(text=f"text {number}", label="a", where="") for number in range(32)]
    for turn in range(5):
        assert sorted(_some(rows, 32, turn)) == sorted(row.text for row in rows)
    assert _some(rows, 32, 0) != _some(rows, 32, 1)
    assert len(_some(rows[:3], 32, 0)) == 32
    assert _how_timed(32).endswith("but not in one call.")
    assert _how_timed(31).endswith("not in one call; in a call of 32, more than the file has, some come again.")


def test_quality_by_the_command(
    llama_bundle: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PAUSE_S", 0.0)
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
    assert "0.0 points more accurate" in record["verdict"][0]
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md"]
    assert all(text not in (out / "report.html").read_text() for text, _ in ROWS)
    again = ptexport(*arguments)
    assert (again.returncode, "--force" in again.stderr) == (1, True)
    twice = ptexport("bench", "quality", second, second, "--data", rows_file, "--out", tmp_path / "x")
    assert "two are called 'second, fp32'" in twice.stderr


def test_speed_tells_which_bundles_took_part(
    llama_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PAUSE_S", 0.0)
    monkeypatch.setattr(speed, "QUICK", Plan(rounds=2, seconds=60, starts=1))
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
    assert report.tables[0].columns[1:] == list(report.bundles)
    assert report.verdict[0].startswith("ptexport, fp32")
    assert not report.left_out


def test_the_verdict_says_where_the_bundle_loses() -> None:
    def system(seconds: list[float], *, start_s: float, megabytes: int) -> Measured:
        size = megabytes * 1_000_000
        return Measured(
            setting="fp32",
            file_bytes=size,
            task_bytes=size,
            max_abs_diff=0,
            flips=0,
            seconds={"1x28": seconds, "8x28": seconds},
            start_s=[start_s],
            resident_bytes=size,
            peak_bytes=size,
        )

    ours = system([1.0, 1.0, 1.0], start_s=2, megabytes=100)
    others = {
        "quick": system([0.5, 0.5, 2.0], start_s=1, megabytes=80),
        "close": system([0.9, 1.5, 1.5], start_s=1.9, megabytes=95),
        "slow": system([2.0, 2.0, 2.0], start_s=9, megabytes=900),
    }
    results = Results(systems={"ours": ours, **others}, left_out={}, ceiling={})
    quick, close, slow = _verdict(results, [(1, 28), (8, 28)])
    assert quick == (
        "ours loses to quick (fp32) at every size; it takes 0.50 times as long. quick takes less: a start of 1.00 s to "
        "2.00 s, 80 to 100 MB of memory after the first answer, 80 to 100 MB of files, 80 to 100 MB for a new task."
    )
    assert close == (
        "ours is ahead of close (fp32) at every size, it takes 1.50 times as long, if not in every turn: "
        "1 x 28: 1.50 (0.90 to 1.50); 8 x 28: 1.50 (0.90 to 1.50)."
    )
    assert slow == "ours is ahead of slow (fp32) at every size and in every turn: it takes 2.00 times as long."


def test_what_speed_refuses(llama_bundle: Path, bert_run: Path, tmp_path: Path) -> None:
    def refusal(*options: object) -> str:
        done = ptexport("bench", "speed", llama_bundle, "--out", tmp_path / "report", *options)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        return done.stderr

    assert "is neither a system nor a folder; write peft, " in refusal("--against", "peftt")
    assert "needs the prompt as it was trained; add --run RUN" in refusal("--against", "peft")
    assert "give the run it was exported from" in refusal("--against", "peft", "--run", bert_run)
    assert not (tmp_path / "report").exists()
