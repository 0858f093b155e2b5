"""Opens bundles and answers with labels; knows numpy, ONNX Runtime and tokenizers, and nothing else of ptexport.

Data flow: rows -> texts -> ids -> logits -> Prediction

    errors.py    every error ptexport raises
    measured.py  what a bundle says was measured of it
    manifest.py  what a bundle says of itself
    bundle.py    a folder on disk -> verified bytes and paths
    signature.py who made a bundle: model.sig and keys
    wire.py      protobuf's bytes <-> fields
    onnx_check.py model.onnx -> a refusal of what no export writes
    cpus.py      how many threads this process may use
    rows.py      JSONL or CSV -> rows
    tokens.py    texts -> padded ids
    onnx_file.py model.onnx <-> what tasks have alike, and the arrays of one
    sessions.py  one session for all engines of a backbone
    libraries.py a shared library -> those it needs
    gpu.py       what a GPU is
    providers.py which execution provider runs a graph, and proof that it does
    buckets.py   which shapes of batch a GPU sees
    buffers.py   ids -> logits through memory that is bound once
    home.py      where the cache is
    tensorrt.py  a bundle -> how TensorRT runs it, and where its engines are kept
    graph.py     ids -> logits
    batches.py   encodings -> logits, batch by batch
    golden.py    whether this machine computes what the model did
    info.py      what an open engine runs on
    predictions.py logits -> predictions
    chunks.py    texts by the piece: as they come, or in turns
    opened.py    a bundle -> what an engine holds until it is closed, in its process
    engine.py    texts -> predictions
    tasks.py     the same for a bundle of many tasks, in one session
    streaming.py rows of files in, predictions out
    protocol.py  JSON bodies <-> texts and predictions
    server.py    an Engine behind HTTP
"""

import os

# ONNX Runtime's official wheels report usage over HTTPS unless this is set before the library loads.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from ptexport.runtime.engine import Engine
from ptexport.runtime.errors import (
    BundleError,
    DataError,
    EngineError,
    MissingExtraError,
    ProviderError,
    PtexportError,
    SignatureError,
)
from ptexport.runtime.info import EngineInfo
from ptexport.runtime.predictions import Prediction
from ptexport.runtime.tasks import TaskEngine

__all__ = [
    "BundleError",
    "DataError",
    "Engine",
    "EngineError",
    "EngineInfo",
    "MissingExtraError",
    "Prediction",
    "ProviderError",
    "PtexportError",
    "SignatureError",
    "TaskEngine",
]
