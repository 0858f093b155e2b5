"""Processes that are forked from one with an engine, or spawned: they answer or say why not, and end; none hangs.

And a control that hangs.
"""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEADLINE_S = 60

PARENT = """
import asyncio, gc, multiprocessing, os, signal, sys, threading, time
from pathlib import Path
from ptexport.runtime import Engine
from ptexport.runtime.errors import EngineError

TEXTS = ["the story was slow and dull " * 4] * 40
bundle = sys.argv[1]
os.environ["TOKENIZERS_PARALLELISM"] = "true"


def expect_error(engine):
    for ask in (engine.predict, engine.logits, lambda texts: asyncio.run(engine.predict_async(texts))):
        try:
            ask(TEXTS)
        except EngineError as e:
            assert "was opened before this process was forked" in str(e), e
        else:
            raise AssertionError("answered")


def asked(bundle):
    return Engine.open(bundle, threads=2).logits(TEXTS).tolist()


def reopened(engine, need):
    signal.alarm(20)  # ends a process that hangs
    expect_error(engine)
    with Engine.open(bundle, threads=2) as own:
        assert own.logits(TEXTS).tolist() == need
        assert len(asyncio.run(own.predict_async(TEXTS))) == len(TEXTS)


def forked(work):
    "Run it in a forked process that ends as any program does, its objects freed."
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    else:
        signal.alarm(20)
        work()
        sys.exit(0)


if __name__ == "__main__":
    engine = Engine.open(bundle, threads=2)
    need = engine.logits(TEXTS).tolist()
    asyncio.run(engine.predict_async(TEXTS))
    time.sleep(0.3)  # until ONNX Runtime's threads sleep: those that still spin are not waited for
"""

ENDINGS = {
    "it opens one of its own": "forked(lambda: reopened(engine, need))",
    "it frees what it inherited": "forked(lambda: (engine.close(), globals().pop('engine'), gc.collect()))",
    "it forks again": "forked(lambda: forked(lambda: reopened(engine, need)))",
    "multiprocessing, fork": """
    process = multiprocessing.get_context("fork").Process(target=reopened, args=(engine, need))
    process.start()
    process.join()
    assert process.exitcode == 0""",
    "many workers, as a server forks them before it serves": """
    workers = []
    for _ in range(4):
        workers.append(os.fork())
        if not workers[-1]:
            reopened(engine, need)
            sys.exit(0)
    assert [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers] == [0] * 4""",
    "while other threads ask": """
    stop = threading.Event()
    def ask():
        while not stop.is_set():
            engine.predict(TEXTS)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        child = os.fork()
        if not child:
            reopened(engine, need)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stop.set()""",
}


def run(bundle: Path, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "parent.py"  # a file: a spawned process imports it
    script.write_text(PARENT + "    " + code.strip() + "\n    assert engine.logits(TEXTS).tolist() == need\n")
    command = [sys.executable, "-W", "ignore", str(script), str(bundle)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S)


@pytest.mark.parametrize("code", ENDINGS.values(), ids=ENDINGS.keys())
def test_a_forked_process(code: str, llama_bundle: Path, tmp_path: Path) -> None:
    done = run(llama_bundle, code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_spawned_process_is_given_the_path(method: str, llama_bundle: Path, tmp_path: Path) -> None:
    code = f"""
    context = multiprocessing.get_context("{method}")
    with context.Pool(2) as pool:
        assert pool.map(asked, [bundle] * 2) == [need] * 2
    try:
        context.Process(target=asked, args=(engine,)).start()
    except EngineError as e:
        assert "cannot be sent to another process" in str(e), e
    else:
        raise AssertionError("was sent")"""
    done = run(llama_bundle, code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_control_freeing_an_inherited_session_hangs(llama_bundle: Path, tmp_path: Path) -> None:
    """What OpenState prevents: without it the forked process waits for threads that are not there, until the alarm."""
    code = """
    from ptexport.runtime.engine import lifetime
    lifetime._all.clear()
    child = os.fork()
    if not child:
        signal.alarm(5)
        engine.close()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"""
    assert int(run(llama_bundle, code, tmp_path).stdout) == -signal.SIGALRM
