"""JSON bodies <-> texts and predictions; knows the wire formats, nothing of HTTP or graphs.

Source: Open Inference Protocol, version 2, REST (kserve/open-inference-protocol), without its binary data extension.
Messages never repeat the texts they are about.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from ptexport.runtime.engine import Prediction
from ptexport.runtime.errors import RequestError
from ptexport.runtime.manifest import Manifest
from ptexport.runtime.tokens import Text

MAX_TEXTS = 1024
_OUTPUTS = ("label", "probabilities")
_T = TypeVar("_T")


class PredictRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /predict`: texts, or pairs of texts."""

    texts: list[str | list[str]]


class InferInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input tensor: a column of texts."""

    name: str
    shape: list[int]
    datatype: str
    data: list[str | list[str]]
    parameters: dict[str, Any] = {}


class InferOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One output asked for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v2/models/{name}/infer`."""

    inputs: list[InferInput]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[InferOutput] = []


def decode(body: bytes, kind: type[_T]) -> _T:
    """Decode a body strictly.

    Raises:
        RequestError: not JSON, or a field unknown, missing or of another type.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise RequestError(f"body: {e}; see the docs for its fields") from e


def texts_of_predict(request: PredictRequest, fields: Sequence[str]) -> list[Text]:
    """Check the texts of `POST /predict` against what the template takes.

    Raises:
        RequestError: too many, or not one or two strings each as the template needs.
    """
    texts: list[Text] = []
    for number, item in enumerate(request.texts):
        parts = [item] if isinstance(item, str) else item
        if (
            not isinstance(parts, list | tuple)
            or len(parts) != len(fields)
            or not all(isinstance(p, str) for p in parts)
        ):
            raise RequestError(
                f"texts[{number}]: need {len(fields)} string(s) ({' and '.join(fields)}) for this template"
            )
        texts.append(parts[0] if len(parts) == 1 else (parts[0], parts[1]))
    return _checked(texts)


def texts_of_infer(request: InferRequest, fields: Sequence[str]) -> list[Text]:
    """Check the tensors of an inference request and join them into texts.

    Raises:
        RequestError: an input or output is missing or unknown, or its type, shape and data do not agree.
    """
    names = [tensor.name for tensor in request.inputs]
    if sorted(names) != sorted(fields):
        raise RequestError(f"inputs: got {names}, need {list(fields)}; send one tensor each")
    for output in request.outputs:
        if output.name not in _OUTPUTS:
            raise RequestError(f"outputs: got {output.name!r}, need one of {list(_OUTPUTS)}")
    columns = {tensor.name: _column(tensor) for tensor in request.inputs}
    if len({len(column) for column in columns.values()}) > 1:
        raise RequestError(f"inputs: got columns of {[len(c) for c in columns.values()]} texts; need the same number")
    rows = list(zip(*(columns[name] for name in fields), strict=True))
    return _checked([row[0] if len(row) == 1 else (row[0], row[1]) for row in rows])


def infer_response(request: InferRequest, manifest: Manifest, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Lay out answers as tensors: `label` BYTES [n] and `probabilities` FP32 [n, labels], row-major."""
    n = len(predictions)
    tensors: dict[str, dict[str, Any]] = {
        "label": {"datatype": "BYTES", "shape": [n], "data": [p.label for p in predictions]},
        "probabilities": {
            "datatype": "FP32",
            "shape": [n, len(manifest.labels)],
            "data": [value for p in predictions for value in p.probabilities.values()],
        },
    }
    wanted = [output.name for output in request.outputs] or list(_OUTPUTS)
    response = {
        "model_name": manifest.name,
        "model_version": "1",
        "outputs": [{"name": w, **tensors[w]} for w in wanted],
    }
    return response if request.id is None else {**response, "id": request.id}


def model_metadata(manifest: Manifest) -> dict[str, Any]:
    """Describe the model."""
    return {
        "name": manifest.name,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": field, "datatype": "BYTES", "shape": [-1]} for field in manifest.fields],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(manifest.labels)]},
        ],
        "parameters": {"labels": manifest.labels},
    }


def _column(tensor: InferInput) -> list[str]:
    if tensor.datatype != "BYTES":
        raise RequestError(f"input {tensor.name!r}: got datatype {tensor.datatype[:20]!r}, need BYTES")
    flat = [value for item in tensor.data for value in (item if isinstance(item, list) else [item])]
    if tensor.shape not in ([len(flat)], [len(flat), 1]):
        raise RequestError(f"input {tensor.name!r}: got shape {tensor.shape[:4]}, need [{len(flat)}], as its data has")
    return flat


def _checked(texts: list[Text]) -> list[Text]:
    if len(texts) > MAX_TEXTS:
        raise RequestError(f"body: got {len(texts)} texts, at most {MAX_TEXTS} are allowed; send several requests")
    return texts
