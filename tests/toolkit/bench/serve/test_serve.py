"""`ptexport bench serve`: real servers and real load generators, each a process; and what must be noticed in them."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
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
from ptexport.toolkit.bench.serve import serve
from ptexport.toolkit.bench.serve.load import LoadRun, LoadSample, TextSource
from ptexport.toolkit.bench.serve.report import serve_report
from ptexport.toolkit.bench.workers import Worker
from ptexport.toolkit.cli.main import cli

SOURCE = TextSource(words=["film", "great", "terrible", "story"], tokens=12)
SHORT = serve.ServePlan(clients=(1, 4), loads=(50, 110), pairs=5, rounds=2, warm_up_s=0.05, closed_s=0.1, open_s=0.3)


@pytest.fixture(scope="module")
def server(llama_bundle: Path) -> Iterator[tuple[str, int]]:
    """URL and process id of a server."""
    with serve.start_server(llama_bundle, 1) as worker:
        yield worker.receive()["url"], worker._process.pid


@pytest.fixture(scope="module")
def load(server: tuple[str, int]) -> Iterator[Worker]:
    with serve.start_load(server[0] + "/predict", SOURCE) as worker:
        yield worker


def run_load(load: Worker, name: str, **changes: Any) -> LoadSample:
    given = {"connections": 256, "rate": 100, "warm_up_s": 0.1, "seconds": 1, "timeout_s": 5, **changes}
    return msgspec.convert(load.request(msgspec.to_builtins(LoadRun(name=name, **given))), LoadSample)


def test_the_command(llama_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "QUICK", SHORT)
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
    assert figures["ratio/p50"].low > 1, "HTTP costs something"
    assert compared == ["ratio/throughput", "ratio/p50", "ratio/p99/50"], "not 110 %"
    assert [len(table.rows) for table in report.tables] == [3, 2]
    assert report.verdict[0].startswith("The server's highest throughput is ")
    assert (out / HTML).read_text("utf-8").count("<svg") == 3


def test_bench_serve_refuses_other_folders(llama_bundle: Path, tmp_path: Path) -> None:
    with (
        serve.start_server(tmp_path, 1) as worker,
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
    with serve.start_load(server[0] + "/nowhere", SOURCE) as load:
        sample = run_load(load, "a", rate=None, connections=2, seconds=0.2)
        assert sample.failures.keys() == {"404"}
        assert (sample.latencies_s, sample.throughput) == ([], 0)
        run = LoadRun(name="b", connections=1, rate=50, warm_up_s=0, seconds=0.2, timeout_s=1)
        with pytest.raises(BenchError, match=r"no successful response in 0\.2 s \(\d+ x 404\)"):
            serve.run_load(load, run)
    with serve.start_load("http://127.0.0.1:9/predict", SOURCE) as load:  # the discard service, which is not running
        assert run_load(load, "c", rate=50, seconds=0.2).failures.keys() == {"connection"}


def test_timeouts_are_counted(server: tuple[str, int], load: Worker) -> None:
    os.kill(server[1], signal.SIGSTOP)
    try:
        sample = run_load(load, "stopped", seconds=0.3, timeout_s=0.2)
    finally:
        os.kill(server[1], signal.SIGCONT)
    assert sample.failures == {"time-out": len(sample.late_s)}
    assert sample.latencies_s == [0.2] * len(sample.late_s)
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
    calm = LoadSample(latencies_s=[0.2], failures={}, throughput=100, late_s=[0.0], cpu=0.1)
    over = msgspec.structs.replace(
        calm, latencies_s=[0.2] * 10 + [0.3] * 10 + [at_the_end_s] * 10, throughput=throughput
    )
    results = serve.ServeResults(
        tokens=12, pairs_s=[[(0.1, 0.2)]], calls_s=[[0.1]], closed={1: [calm]}, open={90: [calm], 110: [over]}, peak=100
    )
    (queue,) = [
        each
        for each in serve_report(results, SHORT, title="", command="", bundles={}, threads=1).verdict
        if "queue grew" in each
    ]
    assert queue.startswith(sentence)
    assert f"at a throughput of {throughput:.0f} of 110 texts/s" in queue


def test_a_generator_that_cannot_keep_up_is_reported(load: Worker) -> None:
    behind = run_load(load, "too many", rate=30_000, seconds=0.2, timeout_s=0.3)
    in_time = msgspec.structs.replace(behind, late_s=[1e-5], failures={}, cpu=0.1)

    def verdict(sample: LoadSample) -> str:
        results = serve.ServeResults(
            tokens=12, pairs_s=[[(0.1, 0.2)]], calls_s=[[0.1]], closed={1: [in_time]}, open={50: [sample]}, peak=100
        )
        return "\n".join(serve_report(results, SHORT, title="", command="", bundles={}, threads=1).verdict)

    late = "At a load of 50 %, the load generator could not keep up"
    assert f"{late}: it sent requests" in verdict(behind)
    assert "x time-out" in verdict(behind)
    assert late not in verdict(in_time)
    assert f"{late}: it used 95% of a CPU" in verdict(msgspec.structs.replace(in_time, cpu=0.95))


def test_a_server_with_other_predictions_is_not_timed(server: tuple[str, int], llama_bundle: Path) -> None:
    bundle = Bundle.open(llama_bundle)
    address, texts = server[0] + "/predict", ["the film was great", "slow"]
    state = OpenState(TaskEncoders.open(bundle), Graph.open(llama_bundle / MODEL))
    serve.check_predictions(address, Engine(bundle, state), texts)
    swapped = Engine(Bundle(path=bundle.path, manifest=bundle.manifest, labels=[bundle.labels[0][::-1]]), state)
    with pytest.raises(BenchError, match="a server with other predictions is not timed"):
        serve.check_predictions(address, swapped, texts)
    with pytest.raises(BenchError, match="got status 404, need 200"):
        serve.check_predictions(server[0] + "/nowhere", swapped, texts)


START = """
import sys, time
from pathlib import Path
from ptexport.toolkit.bench.serve.serve import start_server
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
