"""Open bundles and predict labels. Needs numpy, ONNX Runtime and tokenizers, and no other part of ptexport.

    rows -> texts -> ids -> logits -> Prediction

Rooms, each above what it imports; `docs/architecture.md` has the picture:

    server         service -> HTTP and gRPC
    guard          bytes from anybody -> requests within limits
    serving        requests -> responses, on models that come and go
    monitoring     what became of requests and batches -> metrics, logs and traces
    label_file.py  rows of a file -> predictions in a file
    label_rows.py  rows -> predictions and lines of JSON
    engine         texts -> predictions
    packs          .ptpack file <-> tasks
    ort            model.onnx -> logits on a device
    hub            name on the hub <-> bundle folder
    bundle         bundle folder -> verified files and a manifest
    rows           CSV, JSON, Parquet or Arrow files -> rows
    cache_dir.py   folder of the cache
    errors.py      every error that ptexport raises
"""

import os

# ONNX Runtime's official wheels report usage over HTTPS unless this is set before the library loads.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.engine.info import EngineInfo
from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.engine.task import Task
from ptexport.runtime.errors import (
    BundleError,
    BusyError,
    DataError,
    EngineError,
    HubError,
    MissingExtraError,
    PackError,
    ProviderError,
    PtexportError,
    SignatureError,
)

__all__ = [
    "Batcher",
    "BundleError",
    "BusyError",
    "DataError",
    "Engine",
    "EngineError",
    "EngineInfo",
    "HubError",
    "MissingExtraError",
    "PackError",
    "Prediction",
    "ProviderError",
    "PtexportError",
    "SignatureError",
    "Task",
]
