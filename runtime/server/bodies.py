"""Bodies of HTTP requests <-> the values of the protocol: JSON, and JSON followed by binary tensors.

Source: Open Inference Protocol, version 2, REST (kserve/open-inference-protocol); Triton, extension_binary_data.md.
Messages never repeat content of the request, field names included: any field may hold a private text by mistake.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec

from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.engine.text_encoder import Text
from ptexport.runtime.errors import RequestError
from ptexport.runtime.serving import tensors
from ptexport.runtime.serving.questions import Options, check_memory, options_of
from ptexport.runtime.serving.tensors import InferRequest, InferResponse, OutputRequest, Tensor

HEADER_LENGTH = "inference-header-content-length"
"""Header with the length of the JSON in front of binary tensors."""

FieldsOf = Callable[[str | None], Sequence[str]]
"""Gives the texts of a row of a task, by its name; None: the only task."""

_Element = str | int | bool


class PredictBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /predict`.

    Attributes:
        texts: texts, or pairs of texts.
        task: name of a task; "all": every one; left out: the only one.
        top_k: number of labels with probabilities; left out: all.
        raw_scores: give logits too.
        truncate: truncate texts that are too long; false: refuse them.
    """

    form: ClassVar[str] = '{"texts": ["a text", …]}'

    texts: list[str | tuple[str, str]]
    task: str | None = None
    top_k: int | None = None
    raw_scores: bool = False
    truncate: bool = True


class PredictionBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """One prediction in the response of `POST /predict`."""

    label: str | None
    probabilities: dict[str, float]
    truncated: bool
    logits: dict[str, float] | None = None


class PredictionsBody(msgspec.Struct, frozen=True):
    """Response of `POST /predict`: a prediction per text."""

    predictions: list[PredictionBody]


class AllPredictionsBody(msgspec.Struct, frozen=True):
    """Response of `POST /predict` for the task "all": per text a prediction of each task, by its name."""

    predictions: list[dict[str, PredictionBody]]


class TensorBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input tensor; without `data`, its elements follow the JSON, in `parameters.binary_data_size` bytes."""

    name: str
    shape: list[int]
    datatype: str
    data: list[_Element | list[_Element | list[_Element]]] | None = None
    parameters: dict[str, Any] = {}


class OutputBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One requested output."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v2/models/{name}/infer`."""

    form: ClassVar[str] = '{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a text"]}]}'

    inputs: list[TensorBody]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[OutputBody] = []
    model_name: str | None = None
    """KServe's client repeats the path's name here."""


class OutputTensorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output tensor; without `data`, its elements follow the JSON."""

    name: str
    shape: list[int]
    datatype: str
    data: Sequence[Any] | None = None
    parameters: dict[str, int] = {}


class InferResponseBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """Response of an inference request."""

    model_name: str
    model_version: str
    outputs: list[OutputTensorBody]
    id: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """Body of every refusal: one sentence, *where: got what, need what; do what*."""

    error: str


_Body = TypeVar("_Body", PredictBody, InferBody)


def decode_predict(body: bytes, fields_of: FieldsOf) -> tuple[list[Text], str | None, Options]:
    """Decode and check a body of `POST /predict`: the texts, the task and how to predict.

    Args:
        body: the body.
        fields_of: gives the texts of a row of a task, by its name.

    Raises:
        RequestError: the body is not such JSON, or has a string where the template needs a pair, or the reverse.
    """
    decoded = decode(body, PredictBody)
    given = {"raw_scores": decoded.raw_scores, "truncate": decoded.truncate}
    options = options_of(given if decoded.top_k is None else {**given, "top_k": decoded.top_k})
    fields = fields_of(decoded.task)
    kinds = ("a string", "a list of 2 strings")
    need = kinds[len(fields) - 1]
    example = '"a text"' if len(fields) == 1 else '["a text", "another"]'
    for number, text in enumerate(decoded.texts):
        got = kinds[not isinstance(text, str)]
        if got != need:
            raise RequestError(f'texts[{number}]: got {got}, need {need}; send {{"texts": [{example}, …]}}')
    return [*decoded.texts], decoded.task, options


def encode_predictions(predictions: Sequence[Prediction] | Sequence[Mapping[str, Prediction]]) -> bytes:
    """Encode the response of `POST /predict`."""
    shown: list[Any] = [
        _shown(one) if isinstance(one, Prediction) else {name: _shown(own) for name, own in one.items()}
        for one in predictions
    ]
    return msgspec.json.encode({"predictions": shown})


def decode_infer(body: bytes, header_length: str | None) -> tuple[InferRequest, "BinaryOutputs"]:
    """Decode an inference request, and which outputs are to be binary.

    Args:
        body: JSON, followed by the elements of binary tensors if there is a header length.
        header_length: header `Inference-Header-Content-Length`; None: the body is all JSON.

    Raises:
        RequestError: the body is not such a request.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    if length == 0 and header_length is not None:  # "raw binary request": one string and nothing else
        text = tensors.text_of("body", body)
        return InferRequest(inputs=[Tensor("text", "BYTES", [1], [text])]), BinaryOutputs(default=True)
    decoded = decode(body[:length], InferBody)
    rest = memoryview(body)[length:]
    inputs = []
    for number, tensor in enumerate(decoded.inputs):
        taken = _binary_size(tensor, number, len(rest))
        where = f"inputs[{number}]"
        raw, rest = rest[:taken], rest[taken:]
        data = tensors.elements(where, tensor.datatype, raw) if tensor.data is None else _flat(tensor.data, where)
        inputs.append(Tensor(tensor.name, tensor.datatype, tensor.shape, data))
    if len(rest):
        raise RequestError(f"body: got {len(rest)} bytes past its tensors, need none; correct binary_data_size")
    outputs = [
        OutputRequest(name=output.name, classification=_classes(output.parameters, number))
        for number, output in enumerate(decoded.outputs)
    ]
    request = InferRequest(inputs=inputs, outputs=outputs, parameters=decoded.parameters, id=decoded.id)
    wanted = {output.name: bool(output.parameters.get("binary_data", False)) for output in decoded.outputs}
    return request, BinaryOutputs(wanted, default=bool(decoded.parameters.get("binary_data_output", False)))


class BinaryOutputs:
    """Which outputs a client wants as binary tensors.

    Args:
        wanted: for each requested output.
        default: for the outputs of a request that names none.
    """

    def __init__(self, wanted: Mapping[str, bool] | None = None, *, default: bool = False) -> None:
        self._wanted = wanted or {}
        self._default = default

    def __contains__(self, name: object) -> bool:
        return self._wanted.get(str(name), self._default)


def encode_infer(response: InferResponse, binary: BinaryOutputs) -> tuple[bytes, int | None]:
    """Encode a response; returns the body and the length of the JSON in it, or None if all of it is JSON."""
    outputs, raw = [], []
    for tensor in response.outputs:
        if tensor.name in binary:
            raw.append(tensors.binary(tensor))
            size = {"binary_data_size": len(raw[-1])}
            outputs.append(OutputTensorBody(tensor.name, tensor.shape, tensor.datatype, parameters=size))
        else:
            outputs.append(OutputTensorBody(tensor.name, tensor.shape, tensor.datatype, tensor.data))
    head = msgspec.json.encode(InferResponseBody(response.model, response.version, outputs, response.id))
    return b"".join((head, *raw)), len(head) if raw else None


_FIELDS = {name for kind in (PredictBody, InferBody, TensorBody, OutputBody) for name in kind.__struct_fields__}
_PLACE = re.compile(rf"(\.({'|'.join(sorted(_FIELDS))})|\[\d+\]|\[\.\.\.\])+`")
_OPENING = re.compile(rb'[\[{\]}"]')


def decode(body: bytes, kind: type[_Body]) -> _Body:
    """Decode a body strictly.

    Raises:
        RequestError: the body is not JSON or not Unicode, too deep, or a field is unknown, missing or of another type.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as e:
        place, need = _place(e), ", ".join(kind.__struct_fields__)
        raise RequestError(f"{place}: {_misfit(str(e), place, need)}; send {kind.form}") from e
    except UnicodeDecodeError as e:
        raise RequestError(f"body: got bytes that are not UTF-8, need JSON in UTF-8; send {kind.form}") from e
    except RecursionError as e:
        raise RequestError(f"body: got values nested too deeply, need a few levels; send {kind.form}") from e
    except msgspec.DecodeError as e:
        if _holds_half_a_pair(body):
            raise RequestError("body: got half of a surrogate pair, need Unicode; escape both halves or neither") from e
        why = "its end is missing" if "truncated" in str(e) else str(e).removeprefix("JSON is malformed: ")
        got = f"text that is not JSON ({why})" if body.strip() else "nothing"
        raise RequestError(f"body: got {got}, need an object; send {kind.form}") from e


_EXPECTED = re.compile(r"Expected `([a-z| ]+)`(?:, got `([a-z| ]+)`)?")
_MISSING = re.compile(r"Object missing required field `([a-z_]+)`")
_JSON_NAMES = {
    "array": "a list",
    "str": "a string",
    "object": "an object",
    "int": "a whole number",
    "bool": "true or false",
}


def _misfit(message: str, place: str, fields: str) -> str:
    """Say what does not fit, in words of JSON and without what the caller wrote."""
    if missing := _MISSING.match(message):
        return f"got no {missing[1]!r}, need it"
    if message.startswith("Object contains unknown field"):
        return f"got an unknown field, need {fields}" if place == "body" else "got an unknown field, need none"
    if expected := _EXPECTED.match(message):
        need = " or ".join(_JSON_NAMES.get(kind, kind) for kind in expected[1].split(" | "))
        got = " or ".join(_JSON_NAMES.get(kind, kind) for kind in (expected[2] or "another value").split(" | "))
        return f"got {got}, need {need}"
    return f"got a value that does not fit, need the fields {fields}"


def _shown(prediction: Prediction) -> PredictionBody:
    return PredictionBody(prediction.label, prediction.probabilities, prediction.truncated, prediction.logits)


def _length(header: str, whole: int) -> int:
    if not (header.isascii() and header.isdigit()) or len(header) > 18 or int(header) > whole:
        raise RequestError(
            f"header {HEADER_LENGTH}: got another value, need the bytes of the JSON, at most the {whole} of the body; "
            "correct it"
        )
    return int(header)


def _binary_size(tensor: TensorBody, number: int, left: int) -> int:
    """Return how many bytes past the JSON belong to a tensor."""
    size = tensor.parameters.get("binary_data_size")
    where = f"inputs[{number}]"
    check_memory(tensor.parameters, where)
    if tensor.data is not None:
        if size is not None:
            raise RequestError(f"{where}: got data and binary_data_size, need one of them; leave one out")
        return 0
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise RequestError(f"{where}: got no data, need it, or parameters.binary_data_size; add one of them")
    if size > left:
        raise RequestError(f"{where}: got a binary_data_size past the end of the body, need at most {left}; correct it")
    return size


def _flat(data: Sequence[Any], where: str) -> list[Any]:
    """Flatten nested elements, row-major.

    Raises:
        RequestError: rows have different lengths or depths.
    """
    while any(isinstance(item, list) for item in data):
        if not all(isinstance(item, list) and len(item) == len(data[0]) for item in data):
            raise RequestError(f"{where}: got data of mixed depth or length, need equal rows; flatten it")
        data = [element for row in data for element in row]
    return [*data]


def _classes(parameters: Mapping[str, Any], number: int) -> int:
    check_memory(parameters, f"outputs[{number}]")
    k = parameters.get("classification", 0)
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise RequestError(f"outputs[{number}]: got another classification, need a number of classes; correct it")
    return k


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
