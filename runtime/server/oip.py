"""JSON bodies of the Open Inference Protocol and of `POST /predict` <-> texts and predictions.

Source: Open Inference Protocol, version 2, REST (kserve/open-inference-protocol), without its binary data extension.
Messages never repeat content of the request, field names included: any field may hold a private text by mistake.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec

from ptexport.runtime.bundle.manifest import TaskEntry
from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.engine.text_encoder import Text
from ptexport.runtime.errors import RequestError

MAX_TEXTS = 1024


class PredictRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /predict`: texts, or pairs of texts; and the task, if the bundle has several."""

    form: ClassVar[str] = '{"texts": [...]}'

    texts: list[str | tuple[str, str]]
    task: str | None = None


class InferInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input tensor: a column of texts."""

    name: str
    shape: list[int]
    datatype: str
    data: list[str | list[str]]
    parameters: dict[str, Any] = {}


class InferOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One requested output."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v2/models/{name}/infer`."""

    form: ClassVar[str] = '{"inputs": [{"name": ..., "shape": [...], "datatype": "BYTES", "data": [...]}]}'

    inputs: list[InferInput]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[InferOutput] = []


_Body = TypeVar("_Body", PredictRequest, InferRequest)

_FIELDS = {name for kind in (PredictRequest, InferRequest, InferInput, InferOutput) for name in kind.__struct_fields__}
_PLACE = re.compile(rf"(\.({'|'.join(sorted(_FIELDS))})|\[\d+\]|\[\.\.\.\])+`")


def decode(body: bytes, kind: type[_Body]) -> _Body:
    """Decode a body strictly.

    Raises:
        RequestError: the body is not JSON or not Unicode, or a field is unknown, missing or of another type.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as e:
        fields = ", ".join(kind.__struct_fields__)
        raise RequestError(
            f"{_place(e)}: got a field or value that does not fit, need the fields {fields}; send {kind.form}"
        ) from e
    except UnicodeDecodeError as e:
        raise RequestError(f"body: got bytes that are not UTF-8, need JSON in UTF-8; send {kind.form}") from e
    except (msgspec.DecodeError, RecursionError) as e:
        if _holds_half_a_pair(body):
            raise RequestError("body: got half of a surrogate pair, need Unicode; escape both halves or neither") from e
        why = "its end is missing" if "truncated" in str(e) else str(e).removeprefix("JSON is malformed: ")
        got = f"text that is not JSON ({why})" if body.strip() else "nothing"
        raise RequestError(f"body: got {got}, need an object; send {kind.form}") from e


def texts_of_predict(request: PredictRequest, fields: Sequence[str]) -> list[Text]:
    """Check the texts of `POST /predict` against what the template takes.

    Args:
        request: decoded.
        fields: texts of a row: `["text"]`, `["text", "text_b"]` or `["text", "choice"]`.

    Returns:
        One text or pair per item, in order; may be empty.

    Raises:
        RequestError: there are too many texts, or a string where the template needs a pair, or the reverse.
    """
    _check_count(len(request.texts))
    kinds = ("a string", "a list of 2 strings")
    need = kinds[len(fields) - 1]
    for number, text in enumerate(request.texts):
        got = kinds[not isinstance(text, str)]
        if got != need:
            raise RequestError(f"texts[{number}]: got {got}, need {need}, as the template takes; send that")
    return [*request.texts]


def outputs_of(task: TaskEntry) -> list[str]:
    """Name the outputs of a model; an open vocabulary has too many probabilities to send."""
    return ["label"] if task.labels is None else ["label", "probabilities"]


def texts_of_infer(request: InferRequest, task: TaskEntry) -> list[Text]:
    """Check the tensors of an inference request and join them into texts.

    Args:
        request: decoded.
        task: entry of the model in the manifest.

    Returns:
        One text or pair per row, in order; may be empty.

    Raises:
        RequestError: there are too many texts; an input or output is missing, unknown or repeated; or the datatype,
            shape and data of an input disagree.
    """
    fields, known = task.fields, outputs_of(task)
    if sorted(tensor.name for tensor in request.inputs) != sorted(fields):
        raise RequestError(f"inputs: got {len(request.inputs)} tensor(s), need {list(fields)}; send each once, by name")
    wanted = [output.name for output in request.outputs]
    if not set(wanted) <= set(known) or len(wanted) != len(set(wanted)):
        raise RequestError(f"outputs: got an unknown or repeated name, need some of {known}; correct the list")
    columns = {tensor.name: _column(tensor) for tensor in request.inputs}
    if len({len(column) for column in columns.values()}) > 1:
        raise RequestError(
            f"inputs: got columns of {[len(columns[f]) for f in fields]} texts, need equal numbers; add the rest"
        )
    if len(fields) == 1:
        return [*columns[fields[0]]]
    return list(zip(columns[fields[0]], columns[fields[1]], strict=True))


def predict_response(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Lay out predictions of one task for `POST /predict`."""
    return {"predictions": [_shown(prediction) for prediction in predictions]}


def predict_all_response(predictions: Sequence[Mapping[str, Prediction]]) -> dict[str, Any]:
    """Lay out predictions of every task for `POST /predict`: per text an object by the task's name."""
    return {"predictions": [{name: _shown(p) for name, p in by_task.items()} for by_task in predictions]}


def _shown(prediction: Prediction) -> dict[str, Any]:
    return {"label": prediction.label, "probabilities": prediction.probabilities}


def infer_response(request: InferRequest, task: TaskEntry, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Lay out predictions as tensors: `label` BYTES [n] and `probabilities` FP32 [n, labels], row-major.

    A prediction without a label has the empty string.
    """
    n, labels = len(predictions), task.labels or []
    tensors: dict[str, dict[str, Any]] = {
        "label": {"datatype": "BYTES", "shape": [n], "data": [p.label or "" for p in predictions]},
        "probabilities": {
            "datatype": "FP32",
            "shape": [n, len(labels)],
            "data": [value for p in predictions for value in p.probabilities.values()],
        },
    }
    wanted = [output.name for output in request.outputs] or outputs_of(task)
    response = {"model_name": task.name, "outputs": [{"name": w, **tensors[w]} for w in wanted]}
    return response if request.id is None else {**response, "id": request.id}


def model_metadata(task: TaskEntry) -> dict[str, Any]:
    """Lay out the metadata of a model."""
    labels = task.labels or []
    outputs = {
        "label": {"datatype": "BYTES", "shape": [-1]},
        "probabilities": {"datatype": "FP32", "shape": [-1, len(labels)]},
    }
    return {
        "name": task.name,
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": field, "datatype": "BYTES", "shape": [-1]} for field in task.fields],
        "outputs": [{"name": name, **outputs[name]} for name in outputs_of(task)],
        "parameters": {"labels": labels},
    }


def _column(tensor: InferInput) -> list[str]:
    where, n = f"input {tensor.name!r}", len(tensor.data)
    _check_count(n)
    if tensor.datatype != "BYTES":
        raise RequestError(f"{where}: got another datatype, need BYTES; send strings")
    nested = [item for item in tensor.data if isinstance(item, list)]
    if any(len(item) != 1 for item in nested) or len(nested) not in (0, n):
        raise RequestError(f"{where}: got data of mixed depth or length, need one string per row; flatten it")
    if tensor.shape != [n, 1] and (nested or tensor.shape != [n]):
        need = f"[{n}, 1]" if nested else f"[{n}]"
        raise RequestError(f"{where}: got shape {tensor.shape[:4]}, need {need} as its data has; correct the shape")
    return [item if isinstance(item, str) else item[0] for item in tensor.data]


def _check_count(n: int) -> None:
    if n > MAX_TEXTS:
        raise RequestError(f"body: got {n} texts, need at most {MAX_TEXTS}; send several requests")


def _place(error: msgspec.ValidationError) -> str:
    """Return the place of a value that does not fit, such as `texts[0]`; "body" if the message gives none.

    An unknown key of the caller can look like a place, so only places of known fields are returned.
    """
    _, _, path = str(error).rpartition(" - at `$")
    return path[:-1].removeprefix(".") if _PLACE.fullmatch(path) else "body"


def _holds_half_a_pair(body: bytes) -> bool:
    """Return whether a body is JSON except for an escaped half of a surrogate pair, which `json` accepts."""
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return False
