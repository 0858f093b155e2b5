"""Engines of one backbone share a session, answer as alone, and free it; and controls that must not share."""

import gc
import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
from tiny import Quiet, train_tiny

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.runtime.bundle.folder import file_entry
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.shared_session import SharedSession, shared_session

TEXTS = ["the film was bright", "", "a dull story", "Asia " * 60]


@pytest.fixture(scope="module")
def other_bundle(llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle on the backbone of `llama_bundle`: other rows, no leading ones, three labels."""
    folder = tmp_path_factory.mktemp("sessions")
    labels = "positive=great,negative=terrible,Asia=Asia"
    train_tiny(llama, rows_file, "{text} It was [P*3]", folder / "run", labels=labels)
    export(ExportConfig(runs=(folder / "run",), out=folder / "other"), Quiet())
    return folder / "other"


def alone(bundle: Path, texts: list[str]) -> np.ndarray:
    """What any client answers that opens the file by itself, one text at a time."""
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    encoder = TextEncoder.from_json((bundle / "tokenizer.json").read_text(encoding="utf-8"), fields=["text"])
    ids = [encoder.pad([encoding]) for encoding in encoder.encode(texts)]
    inputs = [value.name for value in session.get_inputs()]
    return np.concatenate([session.run(["logits"], {name: row[name] for name in inputs})[0] for row in ids])


def one_by_one(engine: Engine, texts: list[str]) -> np.ndarray:
    return np.concatenate([engine.logits([text]) for text in texts])


def session_of(engine: Engine) -> object:
    return engine._state.get().graph.session


def test_two_tasks_share_a_session_and_answer_as_alone(llama_bundle: Path, other_bundle: Path) -> None:
    first, second = Engine.open(llama_bundle), Engine.open(other_bundle)
    assert session_of(first) is session_of(second)
    for engine, bundle in ((first, llama_bundle), (second, other_bundle), (first, llama_bundle)):
        np.testing.assert_array_equal(one_by_one(engine, TEXTS), alone(bundle, TEXTS))
    second, first = Engine.open(other_bundle), None  # the one whose arrays are the file's own is gone
    np.testing.assert_array_equal(one_by_one(second, TEXTS), alone(other_bundle, TEXTS))


def test_control_every_array_that_is_given_is_read(llama_bundle: Path) -> None:
    engine = Engine.open(llama_bundle)
    encoders, graph, _ = engine._state.get()
    (encoder,) = encoders.of_task
    ids = encoder.pad(encoder.encode(TEXTS[:1]))
    arrays = OnnxFile.parse((llama_bundle / "model.onnx").read_bytes(), "").arrays
    assert set(arrays) == {"prompt_embeddings", "label_weights", "label_bias", "prefix_kv"}
    np.testing.assert_array_equal(Graph(graph.session, arrays).run(ids), graph.run(ids))
    for name, array in arrays.items():
        other = Graph(graph.session, arrays | {name: 1 - array})
        assert np.abs(other.run(ids) - graph.run(ids)).max() > 1e-2, name


def test_other_weights_graphs_or_threads_share_nothing(llama_bundle: Path, bert_bundle: Path, tmp_path: Path) -> None:
    engine = Engine.open(llama_bundle, threads=1)
    assert session_of(Engine.open(llama_bundle, threads=1)) is session_of(engine)
    assert session_of(Engine.open(llama_bundle, threads=2)) is not session_of(engine)
    assert session_of(Engine.open(bert_bundle, threads=1)) is not session_of(engine)
    for name, old, new in (("model.onnx", b"ptexport", b"PTEXPORT"), ("model.onnx.data", None, None)):
        copy = Path(shutil.copytree(llama_bundle, tmp_path / name))
        data = (copy / name).read_bytes()
        changed = data[:-4] + bytes([data[-4] ^ 1]) + data[-3:] if old is None else data.replace(old, new)
        assert changed != data
        (copy / name).write_bytes(changed)
        manifest = read_manifest((copy / "manifest.json").read_bytes(), "")
        files = {file: file_entry(copy / file) for file in manifest.files}
        (copy / "manifest.json").write_bytes(msgspec.structs.replace(manifest, files=files).to_json())
        assert session_of(Engine.open(copy, threads=1)) is not session_of(engine)


def test_the_last_engine_frees_the_session(llama_bundle: Path, other_bundle: Path) -> None:
    engines = [Engine.open(llama_bundle), Engine.open(other_bundle)]
    session = weakref.ref(session_of(engines[0]))
    engines.pop(0)
    gc.collect()
    assert session() is session_of(engines[0])
    engines.clear()
    gc.collect()
    assert session() is None
    np.testing.assert_array_equal(one_by_one(Engine.open(other_bundle), TEXTS), alone(other_bundle, TEXTS))


def test_threads_that_open_at_once_make_one_session(llama_bundle: Path, other_bundle: Path) -> None:
    barrier, engines = threading.Barrier(8), {}

    def open_one(number: int) -> None:
        barrier.wait()
        engines[number] = Engine.open((llama_bundle, other_bundle)[number % 2])

    threads = [threading.Thread(target=open_one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(session_of(engine)) for engine in engines.values()}) == 1
    np.testing.assert_array_equal(one_by_one(engines[1], TEXTS), alone(other_bundle, TEXTS))


def test_a_session_that_failed_is_tried_again() -> None:
    shared = shared_session("a key of this test")
    with pytest.raises(ZeroDivisionError):
        shared.load(lambda: 1 / 0)
    assert shared_session("a key of this test").load(lambda: "loaded") == "loaded"
    assert shared.load(lambda: "again") == "loaded"
    assert isinstance(shared, SharedSession)


def test_a_forked_process_opens_a_session_of_its_own(llama_bundle: Path) -> None:
    """Its parent's has threads that do not live on; a child that took it would wait for them for ever."""
    code = (
        "import os, sys, signal\nfrom ptexport.runtime import Engine\n"
        "parent = Engine.open(sys.argv[1], threads=2); need = parent.logits(['a story'] * 9).tolist()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(60)\n"
        "    engine = Engine.open(sys.argv[1], threads=2)\n"
        "    same = engine._state.get().graph.session is parent._state._held.graph.session\n"
        "    os._exit(same or engine.logits(['a story'] * 9).tolist() != need)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(llama_bundle)]
    subprocess.run(command, check=True, timeout=120)
