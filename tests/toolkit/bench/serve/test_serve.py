"""`ptexport bench serve`: real servers and real load generators, each a process; and what must be noticed in them."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from click.testing import CliRunner

from ptexport.runtime import Engine
from ptexport.runtime.bundle.folder import MODEL, Bundle
from ptexport.runtime.engine.lifetime import OpenState
from ptexport.runtime.engine.task_encoders import TaskEncoders
from ptexport.runtime.errors import BenchError
from ptexport.runtime.ort.graph import Graph
from ptexport.toolkit.bench.report import HTML, BenchReport
from ptexport.toolkit.bench.serve import plan as plans
from ptexport.toolkit.bench.serve import processes
from ptexport.toolkit.bench.serve.figures import figures_of
from ptexport.toolkit.bench.serve.limits_report import goodput, recovery_s
from ptexport.toolkit.bench.serve.load import LoadRun, LoadSample, Phase, TextSource
from ptexport.toolkit.bench.serve.report import serve_report
from ptexport.toolkit.bench.serve.sending import BROKEN, TIMED_OUT
from ptexport.toolkit.bench.workers import Worker
from ptexport.toolkit.cli.main import cli

SOURCE = TextSource(words=["film", "great", "terrible", "story"], fewest=12, most=12)
SHORT = plans.ServePlan(
    clients=(1, 4),
    loads=(50, 110),
    overloads=(2,),
    turns=2,
    rounds=2,
    warm_up_s=0.05,
    closed_s=0.1,
    open_s=0.3,
    calm_s=0.3,
    overload_s=0.5,
    after_s=0.5,
)


@pytest.fixture(scope="module")
def server(llama_bundle: Path) -> Iterator[tuple[str, int]]:
    """URL and process id of a server."""
    with processes.start_server(llama_bundle, 1) as worker:
        yield worker.receive()["url"], worker.pid


@pytest.fixture(scope="module")
def load(server: tuple[str, int]) -> Iterator[Worker]:
    with processes.start_load(server[0] + "/predict", SOURCE) as worker:
        yield worker


def run_load(load: Worker, name: str, **changes: Any) -> LoadSample:
    phases = [Phase(rate=changes.pop("rate", 100), seconds=changes.pop("seconds", 1))]
    return run_phases(load, name, phases, **changes)[0]


def run_phases(load: Worker, name: str, phases: list[Phase], **changes: Any) -> list[LoadSample]:
    given = {"connections": 256, "warm_up_s": 0.1, "timeout_s": 5, **changes}
    run = LoadRun(name=name, phases=phases, **given)
    return msgspec.convert(load.request(msgspec.to_builtins(run)), list[LoadSample])


def sample(took_s: Sequence[float], *, codes: Sequence[int] = (), throughput: float = 100.0) -> LoadSample:
    """A sample of a second with requests at equal distances, sent in time."""
    n = len(took_s)
    return LoadSample(
        seconds=1,
        due_s=[number / n for number in range(n)],
        took_s=[*took_s],
        late_s=[0.0] * n,
        codes=[*codes] or [200] * n,
        throughput=throughput,
        cpu=0.1,
    )


CALM = sample([0.2])
TURN = plans.Turn(calls_s=[0.1] * 4, requests_s=[0.4, 0.2, 0.2, 0.2])


def results_of(**changes: Any) -> plans.ServeResults:
    given = {"closed": {1: [CALM]}, "open": {}, "saturations": [], "overloads": {}, **changes}
    return plans.ServeResults(tokens=12, turns=[[TURN, TURN]], calls_s=[[0.1]], peak=100, **given)


def test_what_http_adds_in_a_row_and_after_a_pause() -> None:
    figures = figures_of(results_of())
    names = ("overhead/p50", "overhead/p99", "overhead/calls/p99", "overhead/first/p50")
    assert [round(figures[name].value) for name in names] == [100, 100, 0, 300]


def verdict_of(results: plans.ServeResults) -> list[str]:
    return serve_report(results, SHORT, title="", command="", bundles={}, threads=1).verdict


def test_the_command(llama_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "QUICK", SHORT)
    out = tmp_path / "report"
    done = CliRunner().invoke(cli, ["bench", "serve", str(llama_bundle), "--out", str(out), "--quick", "--json"])
    assert done.exit_code == 0, done.output
    report = BenchReport.read(out)
    assert msgspec.json.decode(done.stdout, type=BenchReport) == report
    assert report.kind == "serve"
    figures = {figure.name: figure for figure in report.figures}
    assert len(figures) == len(report.figures)
    names = ["call", "closed/{}/1", "closed/{}/4", "open/{}/50", "open/{}/110"]
    for name in (name if "{" in name else f"{name}/{{}}" for name in names):
        p50, p95, p99 = (figures[name.format(percentile)].value for percentile in ("p50", "p95", "p99"))
        assert 0 < p50 <= p95 <= p99
        throughput = figures[name.format("throughput")]
        assert 0 < throughput.low <= throughput.value <= throughput.high
    assert figures["closed/failed/4"].value == 0
    compared = [name for name, figure in figures.items() if figure.better and not name.startswith(("closed", "open"))]
    assert figures["ratio/p50"].value > 1, "HTTP costs something"
    kinds = [f"ratio/saturation/{other}/{words}" for words in (28, "5-35") for other in ("best", "single")]
    assert compared == ["ratio/throughput", "ratio/p50", "ratio/p99/50", *kinds], "not 110 %"
    assert figures["overhead/p50"].value <= figures["overhead/p99"].value
    assert figures["overload/due/2x"].value > 1.3 * figures["closed/throughput/4"].value
    assert 0 < figures["overload/memory_before/2x"].value <= figures["overload/memory_most/2x"].value
    assert [len(table.rows) for table in report.tables] == [2, 1, 1, 3, 2]
    assert report.verdict[0].startswith("The server's highest throughput is ")
    assert (out / HTML).read_text("utf-8").count("<svg") == 3


def test_bench_serve_refuses_other_folders(llama_bundle: Path, tmp_path: Path) -> None:
    with (
        processes.start_server(tmp_path, 1) as worker,
        pytest.raises(BenchError, match=r"^ptexport serve: its process ended with 1 \(ptexport: .*manifest\.json"),
    ):
        worker.receive()
    done = CliRunner().invoke(cli, ["bench", "serve", str(llama_bundle), "--out", str(tmp_path)])
    assert "exists already" in str(done.exception)


def test_a_closed_loop_has_as_many_requests_as_clients(load: Worker) -> None:
    """Little's law: throughput times mean latency."""
    sample = run_load(load, "little", rate=None, connections=4)
    assert 3 < sample.throughput * sum(sample.latencies_s) / len(sample.latencies_s) < 5
    assert not sample.failures
    assert 0 < sample.cpu < 1


def test_errors_are_counted(server: tuple[str, int]) -> None:
    with processes.start_load(server[0] + "/nowhere", SOURCE) as load:
        sample = run_load(load, "a", rate=None, connections=2, seconds=0.2)
        assert sample.failures.keys() == {"404"}
        assert (sample.latencies_s, sample.throughput) == ([], 0)
        run = LoadRun(name="b", connections=1, phases=[Phase(rate=50, seconds=0.2)], warm_up_s=0, timeout_s=1)
        with pytest.raises(BenchError, match=r"no successful response in 0\.2 s \(\d+ x 404\)"):
            processes.run_load(load, run)
    with processes.start_load(
        "http://127.0.0.1:9/predict", SOURCE
    ) as load:  # the discard service, which is not running
        assert run_load(load, "c", rate=50, seconds=0.2).failures.keys() == {"connection"}


def test_timeouts_are_counted(server: tuple[str, int], load: Worker) -> None:
    os.kill(server[1], signal.SIGSTOP)
    try:
        sample = run_load(load, "stopped", seconds=0.3, timeout_s=0.2)
    finally:
        os.kill(server[1], signal.SIGCONT)
    assert sample.failures == {"time-out": len(sample.late_s)}
    assert sample.latencies_s == pytest.approx([0.2] * len(sample.late_s))
    assert not run_load(load, "goes on", seconds=0.3).failures


def test_requests_that_are_due_while_the_server_stops_are_late(server: tuple[str, int], load: Worker) -> None:
    """The control: a closed-loop client does not measure it (coordinated omission)."""

    def slow(name: str, **changes: Any) -> int:
        for delay_s, number in ((0.4, signal.SIGSTOP), (0.8, signal.SIGCONT)):
            threading.Timer(delay_s, os.kill, (server[1], number)).start()
        sample = run_load(load, name, **changes)
        return sum(latency > 0.1 for latency in sample.latencies_s)

    assert slow("open") > 15, "of the 30 that were due in the first 0.3 of 0.4 s"
    assert slow("closed", rate=None, connections=1) < 5


@pytest.mark.parametrize(
    ("at_the_end_s", "throughput", "sentence"),
    [
        (
            0.9,
            104.0,
            "At a load of 110 % the queue grew: the median latency was 200 ms in the first third of a run and 900 ms",
        ),
        (
            0.25,
            110.0,
            "At a load of 110 % no queue grew: the median latency was 200 ms in the first third of a run and 250 ms",
        ),
    ],
)
def test_a_growing_queue_is_reported(at_the_end_s: float, throughput: float, sentence: str) -> None:
    over = sample([0.2] * 10 + [0.3] * 10 + [at_the_end_s] * 10, throughput=throughput)
    (queue,) = [each for each in verdict_of(results_of(open={90: [CALM], 110: [over]})) if "queue grew" in each]
    assert queue.startswith(sentence)
    assert f"at a throughput of {throughput:.0f} of 110 texts/s" in queue


def test_a_generator_that_cannot_keep_up_is_reported(load: Worker) -> None:
    behind = run_load(load, "too many", rate=30_000, seconds=0.2, timeout_s=0.3)
    assert behind.failures.keys() >= {"time-out"}
    in_time = sample([0.2])

    def verdict(sample: LoadSample) -> str:
        return "\n".join(verdict_of(results_of(open={50: [sample]})))

    late = "At a load of 50 %, the load generator could not keep up"
    assert f"{late}: it sent requests" in verdict(behind)
    assert "x time-out" in verdict(behind)
    assert late not in verdict(in_time)
    assert f"{late}: it used 95% of a CPU" in verdict(msgspec.structs.replace(in_time, cpu=0.95))


def test_phases_follow_without_a_pause(load: Worker) -> None:
    calm, over, after = run_phases(load, "phases", [Phase(rate=rate, seconds=0.4) for rate in (50, 200, 50)])
    assert len(calm.codes) < len(over.codes) > len(after.codes)
    for one in (calm, over, after):
        assert 0 <= one.due_s[0] < one.due_s[-1] < one.seconds == pytest.approx(0.4)
        assert not one.failures


def test_a_deadline_is_asked_for(load: Worker) -> None:
    """All requests come at once, and the later ones have no answer within a millisecond; the control has all."""
    late = run_load(load, "deadline", rate=2000, seconds=0.2, deadline_ms=1)
    assert late.failures.keys() & {"429", "504"}
    assert not run_load(load, "no deadline", rate=2000, seconds=0.2).failures.keys() & {"504"}


def test_answers_past_the_deadline_are_no_goodput() -> None:
    assert goodput(sample([0.1, 0.9, 1.1, 0.1, 0.1], codes=[200, 200, 200, 429, BROKEN])) == 2


@pytest.mark.parametrize(
    ("took_s", "codes", "recovered_s"),
    [
        ([0.2] * 40, [200] * 40, 0.0),
        ([0.9] * 15 + [0.2] * 25, [200] * 40, 0.5),
        ([0.2] * 40, [429] * 15 + [200] * 25, 0.5),
        ([0.9] * 40, [200] * 40, None),
        ([0.2] * 40, [TIMED_OUT] * 40, None),
    ],
)
def test_a_server_has_recovered_when_p99_is_back(
    took_s: list[float], codes: list[int], recovered_s: float | None
) -> None:
    overload = plans.Overload(
        calm=CALM, over=sample([0.5] * 300), after=sample(took_s, codes=codes), resident_mb=(100, 120, 110)
    )
    assert recovery_s(overload) == recovered_s
    said = "\n".join(verdict_of(results_of(overloads={2: overload})))
    assert f"p99 is {'not back 1.00 s' if recovered_s is None else f'back {recovered_s:g} s'} after it" in said


def test_an_overload_without_any_answer_is_reported() -> None:
    overload = plans.Overload(calm=CALM, over=sample([5.0] * 9, codes=[TIMED_OUT] * 9), after=CALM, resident_mb=None)
    said = "\n".join(verdict_of(results_of(overloads={5: overload})))
    assert "answers 0% of it within the deadline, without an answer; none was refused" in said
    assert "9 of 9 requests failed: 9 x time-out" in said


def test_a_generator_that_limits_an_overload_is_reported() -> None:
    def said(over: LoadSample) -> str:
        overload = plans.Overload(calm=CALM, over=over, after=CALM, resident_mb=None)
        return "\n".join(verdict_of(results_of(overloads={5: overload})))

    over, sentence = sample([0.5] * 500), "At 5 times the capacity, the load generator could not keep up"
    assert sentence not in said(over)
    assert sentence in said(msgspec.structs.replace(over, cpu=0.95))
    assert sentence in said(msgspec.structs.replace(over, late_s=[0.02] * 500))
    assert "1 of 500 requests failed: 1 x connection" in said(
        sample([0.5] * 500, codes=[BROKEN] + [429] * 9 + [200] * 490)
    )


def test_a_server_with_other_predictions_is_not_timed(server: tuple[str, int], llama_bundle: Path) -> None:
    bundle = Bundle.open(llama_bundle)
    address, texts = server[0] + "/predict", ["the film was great", "slow"]
    state = OpenState(TaskEncoders.open(bundle), Graph.open(llama_bundle / MODEL))
    processes.check_predictions(address, Engine(bundle, state), texts)
    swapped = Engine(Bundle(path=bundle.path, manifest=bundle.manifest, labels=[bundle.labels[0][::-1]]), state)
    with pytest.raises(BenchError, match="a server with other predictions is not timed"):
        processes.check_predictions(address, swapped, texts)
    with pytest.raises(BenchError, match="got status 404, need 200"):
        processes.check_predictions(server[0] + "/nowhere", swapped, texts)


START = """
import sys, time
from pathlib import Path
from ptexport.toolkit.bench.serve.processes import start_server
print(start_server(Path(sys.argv[1]), 1).receive()["url"], flush=True)
time.sleep(60)
"""


def test_a_bench_that_is_killed_leaves_no_server(llama_bundle: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", START, str(llama_bundle)], stdout=subprocess.PIPE, text=True) as bench:
        assert bench.stdout is not None
        where = urlsplit(bench.stdout.readline().strip())
        socket.create_connection((where.hostname, where.port)).close()
        bench.kill()
    for _ in range(100):
        try:
            socket.create_connection((where.hostname, where.port)).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    pytest.fail("still listening")
