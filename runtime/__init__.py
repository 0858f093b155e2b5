"""Opens bundles and answers with labels; knows numpy, ONNX Runtime and tokenizers, and nothing else of ptexport.

Data flow: rows -> texts -> ids -> logits -> Prediction

    errors.py    every error ptexport raises
    manifest.py  what a bundle says of itself
    bundle.py    a folder on disk -> verified bytes and paths
    cpus.py      how many threads this process may use
    rows.py      JSONL or CSV -> rows
    tokens.py    texts -> padded ids
    onnx_file.py model.onnx <-> what tasks have alike, and the arrays of one
    sessions.py  one session for all engines of a backbone
    graph.py     ids -> logits
    predictions.py logits -> predictions
    opened.py    what an engine holds until it is closed, in its process
    chunks.py    texts by the piece: as they come, or in turns
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
from ptexport.runtime.errors import BundleError, DataError, EngineError, MissingExtraError, PtexportError
from ptexport.runtime.predictions import Prediction
from ptexport.runtime.tasks import TaskEngine

__all__ = [
    "BundleError",
    "DataError",
    "Engine",
    "EngineError",
    "MissingExtraError",
    "Prediction",
    "PtexportError",
    "TaskEngine",
]
