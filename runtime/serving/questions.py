"""Tensors and parameters of an inference request -> the texts or ids to predict, and how."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptexport.runtime.engine.text_encoder import Text, TokenIds
from ptexport.runtime.errors import LargeRequestError, RequestError
from ptexport.runtime.serving.tensors import MAX_TEXTS, InferRequest, OutputRequest, Tensor

MAX_CHARACTERS = 100_000
"""Most characters of a text. Its tokens are cut to the task's length anyway; tokenising a megabyte takes a second."""

IDS = ("input_ids", "attention_mask", "token_type_ids")
"""Inputs that take the place of the texts; their ids include the template's."""

_IGNORED = ("content_type", "headers", "binary_data_output")
"""Parameters of a request that other clients send and that change nothing here."""
_REFUSED = ("sequence_id", "sequence_start", "sequence_end", "priority")
"""Parameters that would change what another server does; only their neutral values are taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to predict.

    Attributes:
        top_k: number of labels with probabilities; None: all.
        raw_scores: give logits in place of probabilities.
        truncate: truncate texts that are too long; False: refuse them.
        task: the task to ask, where a model stands for all.
        timeout_s: seconds after which the predictions are of no use; None: any time.
    """

    top_k: int | None = None
    raw_scores: bool = False
    truncate: bool = True
    task: str | None = None
    timeout_s: float | None = None


def options_of(parameters: Mapping[str, Any], where: str = "parameters.") -> Options:
    """Check the parameters of a request.

    Args:
        parameters: by name.
        where: place of a parameter, up to its name, for messages.

    Raises:
        RequestError: one is unknown or of another type.
    """
    given: dict[str, Any] = {}
    for name, value in parameters.items():
        if name == "top_k":
            given[name] = _whole(f"{where}{name}", value, "labels")
        elif name in ("raw_scores", "truncate"):
            if not isinstance(value, bool):
                raise RequestError(f"parameters.{name}: got another type, need true or false; send one of them")
            given[name] = value
        elif name == "task":
            if not isinstance(value, str):
                raise RequestError("parameters.task: got another type, need a name; send a string")
            given[name] = value
        elif name == "timeout":
            given["timeout_s"] = _whole(f"{where}{name}", value, "microseconds") / 1e6
        elif name in _REFUSED and value:
            raise RequestError(
                f"parameters.{name}: got a value, need none, since requests are independent; leave it out"
            )
        elif name not in _IGNORED and name not in _REFUSED:
            known = "top_k, raw_scores, truncate, task, timeout"
            raise RequestError(f"parameters: got an unknown name, need {known}; correct it")
    return Options(**given)


def _whole(where: str, value: Any, unit: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 63:
        raise RequestError(f"{where}: got another value, need a whole number of {unit} from 1; correct it")
    return value


def rows_of(request: InferRequest, fields: Sequence[str]) -> Sequence[Text | TokenIds]:
    """Check the input tensors of a request, and join them into rows.

    Args:
        request: the request.
        fields: texts of a row: `["text"]`, `["text", "text_b"]` or `["text", "choice"]`.

    Returns:
        One text, pair or row of ids per row, in order; may be empty.

    Raises:
        RequestError: an input is missing, unknown or repeated, or its datatype, shape and data disagree.
        LargeRequestError: there are too many texts, or one is too long.
    """
    names = [tensor.name for tensor in request.inputs]
    if len(fields) == 1 and len(names) == 1 and names[0] not in IDS:
        return _column(request.inputs[0], "inputs[0]")  # whatever its name: clients have names of their own
    if "input_ids" in names and len(set(names)) == len(names) and set(names) <= set(IDS):
        return _ids({tensor.name: tensor for tensor in request.inputs})
    if sorted(names) != sorted(fields):
        raise RequestError(
            f"inputs: got {len(names)} tensor(s), need {list(fields)}, or input_ids and attention_mask; send each "
            "once, by name"
        )
    columns = {tensor.name: _column(tensor, f"input {tensor.name!r}") for tensor in request.inputs}
    if len({len(column) for column in columns.values()}) > 1:
        raise RequestError(
            f"inputs: got columns of {[len(columns[f]) for f in fields]} texts, need equal numbers; add the rest"
        )
    return list(zip(columns[fields[0]], columns[fields[1]], strict=True))


def check_texts(texts: Sequence[Text]) -> None:
    """Check number and sizes of texts.

    Raises:
        LargeRequestError: there are too many, or one is too long.
    """
    _check_count(len(texts))
    for number, text in enumerate(texts):
        parts = (text,) if isinstance(text, str) else text
        if max(map(len, parts)) > MAX_CHARACTERS:
            raise LargeRequestError(
                f"text {number}: got more than {MAX_CHARACTERS:,} characters, need fewer; the end would be cut anyway"
            )


def check_outputs(outputs: Sequence[OutputRequest], known: Sequence[str]) -> None:
    """Check the names of requested outputs.

    Raises:
        RequestError: one is unknown or repeated.
    """
    names = [output.name for output in outputs]
    if not set(names) <= set(known) or len(names) != len(set(names)):
        raise RequestError(f"outputs: got an unknown or repeated name, need some of {[*known]}; correct the list")


def check_memory(parameters: Mapping[str, Any], where: str) -> None:
    """Refuse a tensor that is to be in memory which client and server share (Triton's extension).

    Raises:
        RequestError: it is.
    """
    if any(name.startswith("shared_memory") for name in parameters):
        raise RequestError(f"{where}: got a region of shared memory, need the data itself; send it")


def classes_of(value: object, where: str) -> int:
    """Check the parameter `classification` of an output; 0: the output itself is asked for.

    Raises:
        RequestError: it is not a number of classes.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RequestError(f"{where}: got another classification, need a number of classes; correct it")
    return value


def _column(tensor: Tensor, where: str) -> list[str]:
    n = len(tensor.data)
    _check_count(n)
    if tensor.datatype != "BYTES":
        raise RequestError(f"{where}: got another datatype, need BYTES; send strings")
    if not all(isinstance(item, str) for item in tensor.data):
        raise RequestError(f"{where}: got data that is not text, need strings; send them")
    if tensor.shape not in ([n], [n, 1]) and not (tensor.shape == [] and n == 1):
        raise RequestError(
            f"{where}: got a shape that does not match its {n} strings, need [{n}] or [{n}, 1]; correct it"
        )
    check_texts(tensor.data)
    return [*tensor.data]


def _ids(tensors: Mapping[str, Tensor]) -> list[TokenIds]:
    shape = tensors["input_ids"].shape
    for name, tensor in tensors.items():
        if tensor.datatype not in ("INT64", "INT32"):
            raise RequestError(f"input {name!r}: got another datatype, need INT64; convert it")
        if len(shape) != 2 or tensor.shape != shape or math.prod(shape) != len(tensor.data) or min(shape) < 0:
            raise RequestError(
                f"input {name!r}: got a shape that does not match the data, need [rows, tokens], as input_ids has it; "
                "correct the shape"
            )
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in tensor.data):
            raise RequestError(f"input {name!r}: got data that is not whole numbers, need ids; send them")
    rows, length = shape
    _check_count(rows)
    ids = tensors["input_ids"].data
    mask = tensors["attention_mask"].data if "attention_mask" in tensors else [1] * len(ids)
    types = tensors["token_type_ids"].data if "token_type_ids" in tensors else [0] * len(ids)
    if not {*mask} <= {0, 1}:
        raise RequestError("input 'attention_mask': got another value, need 0 or 1; correct it")
    made = []
    for row in range(rows):  # one without ids too: the task refuses it
        kept = [at for at in range(row * length, (row + 1) * length) if mask[at]]  # positions are counted over the mask
        made.append(TokenIds([ids[at] for at in kept], [types[at] for at in kept]))
    return made


def _check_count(n: int) -> None:
    if n > MAX_TEXTS:
        raise LargeRequestError(f"body: got {n} texts, need at most {MAX_TEXTS}; send several requests")
