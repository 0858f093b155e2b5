"""The routes of the server -> an OpenAPI document, with schemas made from the types that decode and encode bodies."""

from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec

from ptexport.runtime.guard.limits import MAX_BODY_BYTES
from ptexport.runtime.server.schemas import (
    AllPredictionsBody,
    ErrorBody,
    InferBody,
    InferResponseBody,
    PredictBody,
    PredictionsBody,
)


class Live(msgspec.Struct):
    """Whether the process serves."""

    live: bool


class Ready(msgspec.Struct):
    """Whether the server accepts requests."""

    ready: bool


class ModelReady(msgspec.Struct):
    """Whether a model accepts requests."""

    name: str
    ready: bool


class ServerMetadata(msgspec.Struct):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class ModelList(msgspec.Struct):
    """Names of the models."""

    models: list[str]


class TensorMetadata(msgspec.Struct):
    """One input or output; -1 in a shape: any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    """What a model takes and gives, and what its manifest says of it."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, Any]


class IndexEntry(msgspec.Struct):
    """One model of the repository index."""

    name: str
    version: str
    state: str
    reason: str


_TYPES = (
    *(Live, Ready, ModelReady, ServerMetadata, ModelList, ModelMetadata, IndexEntry),
    *(InferBody, InferResponseBody, PredictBody, PredictionsBody, AllPredictionsBody, ErrorBody),
)
_ASK_FAILURES = {
    400: "the request does not fit the protocol or the model",
    401: "the server needs a bearer token",
    403: "another host's web page sent it, and the server has no token",
    404: "there is no such model",
    408: "the body did not come in time",
    413: f"the body, a text or their number is too large; a body has at most {MAX_BODY_BYTES} bytes",
    415: "the body is compressed",
    421: "it is for another host, and the server has no token",
    422: "a text is too long, and `truncate` is false",
    429: "too many texts wait; send it again after Retry-After seconds",
    500: "the server failed",
    503: "the server stops, or has too many bodies to read; send it again after Retry-After seconds",
    504: "the time of the request was over",
}


@cache
def document() -> dict[str, Any]:
    """Return the document (OpenAPI 3.1)."""
    _, components = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    name, version_ = _path_parameter("name"), _path_parameter("version")
    index = _content({"type": "array", "items": _ref(IndexEntry)})
    predictions = _content({"anyOf": [_ref(PredictionsBody), _ref(AllPredictionsBody)]})
    paths: dict[str, Any] = {
        "/v2": _get(ServerMetadata, "The server's name, version and extensions"),
        "/v2/health/live": _get(Live, "Whether the process serves"),
        "/v2/health/ready": _get(Ready, "Whether the server accepts requests"),
        "/v2/models": _get(ModelList, "Names of the models"),
        "/v2/repository/index": {"post": _operation(None, "Every model with its version", index)},
        "/predict": {"post": _operation(PredictBody, "Labels of texts", predictions, _ASK_FAILURES)},
    }
    text = {"200": {"description": "the metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    paths["/metrics"] = {"get": {"summary": "Metrics for Prometheus", "responses": text}}
    not_ready = {"description": "it does not", "content": _content(_ref(Ready))}
    paths["/v2/health/ready"]["get"]["responses"]["503"] = not_ready
    for path, parameters in (("/v2/models/{name}", [name]), ("/v2/models/{name}/versions/{version}", [name, version_])):
        unknown = {404: "there is no such model"}
        paths[path] = {"parameters": parameters, **_get(ModelMetadata, "What a model takes and gives", unknown)}
        paths[f"{path}/ready"] = {"parameters": parameters, **_get(ModelReady, "Whether a model is ready", unknown)}
        paths[f"{path}/infer"] = {
            "parameters": parameters,
            "post": _operation(InferBody, "Predictions as tensors", _content(_ref(InferResponseBody)), _ASK_FAILURES),
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "ptexport", "version": version("ptexport")},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _get(answer: type, summary: str, failures: dict[int, str] | None = None) -> dict[str, Any]:
    return {"get": _operation(None, summary, _content(_ref(answer)), failures or {})}


def _operation(
    body: type | None, summary: str, answer: dict[str, Any], failures: dict[int, str] | None = None
) -> dict[str, Any]:
    error = {"content": _content(_ref(ErrorBody))}
    responses: dict[str, Any] = {"200": {"description": "the answer", "content": answer}}
    responses |= {str(code): {"description": why, **error} for code, why in (failures or {}).items()}
    made: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        made["requestBody"] = {"required": True, "content": _content(_ref(body))}
    return made


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
