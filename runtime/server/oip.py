"""JSON bodies <-> texts and predictions; knows the wire formats, nothing of HTTP or graphs.

Source: Open Inference Protocol, version 2, REST (kserve/open-inference-protocol), without its binary data extension.
Messages never repeat what the caller wrote, field names included: a text can be anywhere by mistake.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import msgspec

from ptexport.runtime.bundle.manifest import Manifest
from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.engine.text_encoder import Text
from ptexport.runtime.errors import RequestError

MAX_TEXTS = 1024


class PredictRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /predict`: texts, or pairs of texts."""

    form: ClassVar[str] = '{"texts": [...]}'

    texts: list[str | tuple[str, str]]


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

    form: ClassVar[str] = '{"inputs": [{"name": ..., "shape": [...], "datatype": "BYTES", "data": [...]}]}'

    inputs: list[InferInput]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[InferOutput] = []


_Body = TypeVar("_Body", PredictRequest, InferRequest)


def decode(body: bytes, kind: type[_Body]) -> _Body:
    """Decode a body strictly.

    Raises:
        RequestError: not JSON, not Unicode, or a field unknown, missing or of another type.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as e:
        raise RequestError(f"{_wrong(str(e), kind)}; send {kind.form}") from e
    except UnicodeDecodeError as e:
        raise RequestError(f"body: got bytes that are not UTF-8, need JSON in UTF-8; send {kind.form}") from e
    except (msgspec.DecodeError, RecursionError) as e:
        if _holds_half_a_pair(body):
            raise RequestError("body: got half of a surrogate pair, need Unicode; escape both halves or none") from e
        why = "its end is missing" if "truncated" in str(e) else str(e).removeprefix("JSON is malformed: ")
        got = f"no JSON ({why})" if body.strip() else "nothing"
        raise RequestError(f"body: got {got}, need an object; send {kind.form}") from e


def texts_of_predict(request: PredictRequest, fields: Sequence[str]) -> list[Text]:
    """Check the texts of `POST /predict` against what the template takes.

    Args:
        request: decoded.
        fields: the texts a row brings: `["text"]` or `["text", "text_b"]`.

    Returns:
        One text or pair per item, in order; may be empty.

    Raises:
        RequestError: too many, or a string where the template needs a pair or the other way round.
    """
    _check_count(len(request.texts))
    kinds = ("a string", "a list of 2 strings")
    need = kinds[len(fields) - 1]
    for number, text in enumerate(request.texts):
        got = kinds[not isinstance(text, str)]
        if got != need:
            raise RequestError(f"texts[{number}]: got {got}, need {need}; send what this template takes")
    return [*request.texts]


def outputs_of(manifest: Manifest) -> list[str]:
    """Name the outputs of a model; where answers are open, there are too many probabilities to send."""
    return ["label"] if manifest.labels is None else ["label", "probabilities"]


def texts_of_infer(request: InferRequest, manifest: Manifest) -> list[Text]:
    """Check the tensors of an inference request and join them into texts.

    Args:
        request: decoded.
        manifest: of the model.

    Returns:
        One text or pair per row, in order; may be empty.

    Raises:
        RequestError: too many, an input or output missing, unknown or repeated, or its type, shape and data disagree.
    """
    fields, known = manifest.fields, outputs_of(manifest)
    if sorted(tensor.name for tensor in request.inputs) != sorted(fields):
        raise RequestError(f"inputs: got {len(request.inputs)} tensor(s), need {list(fields)}; send each once, by name")
    wanted = [output.name for output in request.outputs]
    if not set(wanted) <= set(known) or len(wanted) != len(set(wanted)):
        raise RequestError(f"outputs: got an unknown or repeated name, need some of {known}; mend the list")
    columns = {tensor.name: _column(tensor) for tensor in request.inputs}
    if len({len(column) for column in columns.values()}) > 1:
        raise RequestError(f"inputs: got columns of {[len(columns[f]) for f in fields]} texts; send as many of each")
    if len(fields) == 1:
        return [*columns[fields[0]]]
    return list(zip(columns[fields[0]], columns[fields[1]], strict=True))


def predict_response(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Lay out answers for `POST /predict`."""
    return {"predictions": [{"label": p.label, "probabilities": p.probabilities} for p in predictions]}


def infer_response(request: InferRequest, manifest: Manifest, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Lay out answers as tensors: `label` BYTES [n] and `probabilities` FP32 [n, labels], row-major.

    A label is the empty string where the bundle gives none.
    """
    n, labels = len(predictions), manifest.labels or []
    tensors: dict[str, dict[str, Any]] = {
        "label": {"datatype": "BYTES", "shape": [n], "data": [p.label or "" for p in predictions]},
        "probabilities": {
            "datatype": "FP32",
            "shape": [n, len(labels)],
            "data": [value for p in predictions for value in p.probabilities.values()],
        },
    }
    wanted = [output.name for output in request.outputs] or outputs_of(manifest)
    response = {"model_name": manifest.name, "outputs": [{"name": w, **tensors[w]} for w in wanted]}
    return response if request.id is None else {**response, "id": request.id}


def model_metadata(manifest: Manifest) -> dict[str, Any]:
    """Describe the model."""
    labels = manifest.labels or []
    outputs = {
        "label": {"datatype": "BYTES", "shape": [-1]},
        "probabilities": {"datatype": "FP32", "shape": [-1, len(labels)]},
    }
    return {
        "name": manifest.name,
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": field, "datatype": "BYTES", "shape": [-1]} for field in manifest.fields],
        "outputs": [{"name": name, **outputs[name]} for name in outputs_of(manifest)],
        "parameters": {"labels": labels},
    }


def _column(tensor: InferInput) -> list[str]:
    where, n = f"input {tensor.name!r}", len(tensor.data)
    _check_count(n)
    if tensor.datatype != "BYTES":
        raise RequestError(f"{where}: got another datatype, need BYTES; send strings")
    nested = [item for item in tensor.data if isinstance(item, list)]
    if any(len(item) != 1 for item in nested) or len(nested) not in (0, n):
        raise RequestError(f"{where}: got data of mixed depth or length, need one string a row; flatten it")
    if tensor.shape != [n, 1] and (nested or tensor.shape != [n]):
        need = f"[{n}, 1]" if nested else f"[{n}]"
        raise RequestError(f"{where}: got shape {tensor.shape[:4]}, need {need} as its data has; mend the shape")
    return [item if isinstance(item, str) else item[0] for item in tensor.data]


def _check_count(n: int) -> None:
    if n > MAX_TEXTS:
        raise RequestError(f"body: got {n} texts, need at most {MAX_TEXTS}; send several requests")


_PLACE = re.compile(
    r" - at `\$\.(texts(?:\[\d+\]){0,2}|id|parameters"
    r"|(?:inputs|outputs)(?:\[\d+\](?:\.(?:name|shape|datatype|data|parameters)(?:\[\d+\]){0,2})?)?)`$"
)
_KINDS = {"object": "an object", "array": "a list", "str": "a string", "int": "a whole number", "float": "a number"}


def _wrong(message: str, kind: type[PredictRequest | InferRequest]) -> str:
    """Say what msgspec says of a value in our words, and where an unknown field is rather than what it is called."""
    place = _PLACE.search(message)
    where, said = (place[1], message[: place.start()]) if place else ("body", message)
    if said.startswith("Object contains unknown field"):
        of = InferInput if where.startswith("inputs[") else InferOutput if where.startswith("outputs[") else kind
        known = ", ".join(of.__struct_fields__)
        return f"{where}: got an unknown field, need no other than {known}"
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", said):
        return f"{where}: got no field {missing[1]}, need it"
    if other := re.fullmatch(r"Expected `([\w |]+)`, got `(\w+)`", said):
        got, *need = (_KINDS.get(name, name) for name in (other[2], *other[1].split(" | ")))
        return f"{where}: got {got}, need {' or '.join(need)}"
    if length := re.fullmatch(r"Expected `array` of length (\d+)", said):
        return f"{where}: got a list of another length, need {length[1]}"
    return f"{where}: got another value than the protocol has"


def _holds_half_a_pair(body: bytes) -> bool:
    """Whether it is JSON but for an escape of half a character above U+FFFF, which `json` takes."""
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return False
