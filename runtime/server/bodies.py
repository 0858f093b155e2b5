"""Bodies of HTTP requests <-> the values of the protocol: JSON, and JSON followed by binary tensors.

Source: Open Inference Protocol, version 2, REST (kserve/open-inference-protocol); Triton, extension_binary_data.md.
Messages never repeat content of the request, field names included: any field may hold a private text by mistake.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.engine.text_encoder import Text
from ptexport.runtime.errors import RequestError
from ptexport.runtime.server.schemas import (
    InferBody,
    InferResponseBody,
    OutputTensorBody,
    PredictBody,
    PredictionBody,
    TensorBody,
    decode,
)
from ptexport.runtime.serving import tensors
from ptexport.runtime.serving.questions import Options, check_memory, classes_of, options_of
from ptexport.runtime.serving.tensors import InferRequest, InferResponse, OutputRequest, Tensor

HEADER_LENGTH = "inference-header-content-length"
"""Header with the length of the JSON in front of binary tensors."""

FieldsOf = Callable[[str | None], Sequence[str]]
"""Gives the texts of a row of a task, by its name; None: the only task."""


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
    options = options_of(given if decoded.top_k is None else {**given, "top_k": decoded.top_k}, where="")
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
    outputs = []
    for number, output in enumerate(decoded.outputs):
        where = f"outputs[{number}]"
        check_memory(output.parameters, where)
        classes = classes_of(output.parameters.get("classification", 0), where)
        outputs.append(OutputRequest(name=output.name, classification=classes))
    request = InferRequest(inputs=inputs, outputs=outputs, parameters=decoded.parameters, id=decoded.id)
    flags = ((output.name, output.parameters.get("binary_data")) for output in decoded.outputs)
    wanted = {name: bool(flag) for name, flag in flags if flag is not None}
    return request, BinaryOutputs(wanted, default=bool(decoded.parameters.get("binary_data_output", False)))


class BinaryOutputs:
    """Which outputs a client wants as binary tensors.

    Args:
        wanted: for the outputs that say so themselves.
        default: for all others.
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
    """Flatten rows of elements.

    Raises:
        RequestError: rows have different lengths, or stand beside elements.
        LargeRequestError: there are too many elements.
    """
    tensors.check_elements(where, len(data))
    if not any(isinstance(item, list) for item in data):
        return [*data]
    if not all(isinstance(item, list) and len(item) == len(data[0]) for item in data):
        raise RequestError(f"{where}: got data of mixed depth or length, need equal rows; flatten it")
    tensors.check_elements(where, len(data) * len(data[0]))
    return [element for row in data for element in row]
