"""Types of the bodies of requests and responses, decoded strictly; `openapi.py` makes their schemas from them.

Messages never repeat content of the request, field names included: any field may hold a private text by mistake.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import msgspec

from ptexport.runtime.errors import RequestError

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
    data: list[_Element | list[_Element]] | None = None
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


_FIELDS = {name for kind in (PredictBody, InferBody, TensorBody, OutputBody) for name in kind.__struct_fields__}
_PLACE = re.compile(rf"(\.({'|'.join(sorted(_FIELDS))})|\[\d+\]|\[\.\.\.\])+`")


def decode(body: bytes, kind: type[_Body]) -> _Body:
    """Decode a body strictly.

    Raises:
        RequestError: the body is not JSON or not Unicode, too deep, or a field is unknown, missing or of another type.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as e:
        place, need = _place(e), ", ".join(kind.__struct_fields__)
        advice = f"send {kind.form}" if place in ("body", "texts", "inputs") else "correct it"
        raise RequestError(f"{place}: {_misfit(str(e), place, need)}; {advice}") from e
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
