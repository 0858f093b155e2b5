"""Wrong HTTP requests, and what a server must still do: all routes, eight methods, right requests damaged everywhere.

In the manner of Triton's https://github.com/triton-inference-server/server/tree/main/qa/L0_http_fuzz, which is boofuzz
over its routes and eight methods. Here a request is bytes on a socket, drawn from a seeded generator, so
that what goes wrong can be sent again: the finding names its number.
"""

import contextlib
import gzip
import json
import random
import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from conformance.started import Server, bytes_tensor

LIMIT_S = 5.0
GROWTH_BYTES = 50_000_000
WARM_UP = 100
"""Requests before memory is measured: a server has its thread pools and caches after them."""
MOST_FINDINGS = 5
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_ROUTES = """
/ /page/app.js /metrics /openapi.json /predict /v2 /v2/ /v2/health/live /v2/health/ready /v2/models /v2/models/reviews
/v2/models/reviews/ready /v2/models/reviews/infer /v2/repository/index /v2/models/reviews/versions/1
/v2/models/reviews/versions/1/ready /v2/models/reviews/versions/1/infer /v2/models/nobody /v2/models/all/infer
/v2/repository/models/reviews/load /v2/logging /nowhere
"""
ROUTES = _ROUTES.split()
PREDICT = {"texts": ["the film was bright", ""], "task": "reviews", "top_k": 1, "raw_scores": True, "truncate": True}
TENSOR = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["slow", "bright"]}
IDS = [
    {"name": name, "shape": [1, 3], "datatype": "INT64", "data": [[1, 1, 1]]}
    for name in ("input_ids", "attention_mask")
]
INFER = (
    {"id": "7", "inputs": [TENSOR], "outputs": [{"name": "label"}], "parameters": {"timeout": 10**7, "top_k": 1}},
    {"inputs": IDS, "parameters": {"raw_scores": True, "binary_data_output": True}},
)
_ODD = """
null true -1 0 1.5 -0 1e400 NaN -Infinity 9223372036854775808 "" [] {} [[]] [{"a":{}}] {"a":1,"a":2} [2] [-1]
[4294967296,4294967296] "\\ud800" "\\u0000" "a\\ud83d\\ude00" "\\udc00\\ud800" tru 'a' 0x10 01 +1 //a "BYTES" "label"
"""
ODD = [
    *_ODD.split(),
    *("1" + "0" * 5000, "[" * 200 + "]" * 200, "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000),
    *('"' + "a" * 100_000 + '"', "[" + "0," * 20_000 + "0]", '"\xff"', '"\t"'),
]
"""Values in place of right ones: JSON and what is none, of other types, too large, too deep, no Unicode."""
_HEADERS = """\
Content-Encoding: gzip
Content-Encoding: br
Content-Type: text/plain
Content-Type: application/json; charset=x
Inference-Header-Content-Length: 5
Inference-Header-Content-Length: -1
Inference-Header-Content-Length: 0
x-request-timeout-ms: 0
x-request-timeout-ms: NaN
x-request-timeout-ms: 1e999
x-request-id: \xff\x01
traceparent: 00-x-y-z
Accept-Encoding: gzip
Accept: image/png
Expect: 100-continue
Expect: x
Range: bytes=5-
Host: y
: b
a b: c
a:\x00b
 folded: c
Authorization: Bearer x
Origin: http://evil
If-None-Match: *
Transfer-Encoding: gzip
Connection: keep-alive"""
HEADERS = [
    *_HEADERS.split("\n"),
    *("Connection: Upgrade\r\nUpgrade: websocket", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c"),
    *("x-request-id: " + "a" * 5000, "traceparent: 00-" + "0" * 60, "Cookie: " + "a=b; " * 500),
    *("A" * 5000 + ": b", "a: " + "b" * 70_000),
]


@dataclass(frozen=True)
class Request:
    """Bytes to send; `whole`: a server can tell where the request ends, so that it must answer."""

    kind: str
    data: bytes
    whole: bool = True


@dataclass
class Report:
    """What came of many requests: how often which status, and what was wrong."""

    statuses: Counter[int] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def requests(seed: int, count: int) -> Iterator[Request]:
    """Draw requests; the same seed draws the same."""
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        yield draw.choice((_route, _json, _json, _binary, _binary, _framing, _damaged))(draw)


def run(server: Server, sent: Iterable[Request]) -> Report:
    """Send requests one after the other, and look for what must not happen.

    A finding is: a status of 500 or more but 503, no answer within 5 s, a process that has ended or that has grown by
    50 MB, and an answer to a right request that is another than before.
    """
    report, before, memory = Report(), _right_answer(server), 0
    for number, request in enumerate(sent):
        if number == WARM_UP:
            memory = server.memory_bytes()
        what = _check(server, request, report)
        if what is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(0.5)
                report.findings.append(f"{number} ({request.kind}): the process has ended: {request.data[:200]!r}")
                return report
            report.findings.append(f"{number} ({request.kind}): {what}: {request.data[:200]!r}")
            if len(report.findings) == MOST_FINDINGS:
                return report
    if server.process.poll() is not None:
        report.findings.append("the process has ended")
        return report
    if memory and (growth := server.memory_bytes() - memory) > GROWTH_BYTES:
        report.findings.append(f"memory: grew by {growth / 1e6:.0f} MB")
    if _right_answer(server) != before:
        report.findings.append("a right request: gets another answer than before")
    return report


def _right_answer(server: Server) -> bytes:
    request = _request("POST", "/predict", json.dumps({"texts": ["bright", "slow"]}).encode())
    head, _, body = _exchange(server, Request("right", request)).partition(b"\r\n\r\n")
    return head[:15] + body


def _check(server: Server, request: Request, report: Report) -> str | None:
    """Send a request; return what is wrong with what came."""
    started = time.monotonic()
    try:
        answer = _exchange(server, request)
    except TimeoutError:
        return f"no answer within {LIMIT_S:g} s"
    except ConnectionRefusedError:
        return "the connection is refused"
    if time.monotonic() - started > LIMIT_S:
        return f"took {time.monotonic() - started:.1f} s"
    if not answer:
        return "closed without an answer" if request.whole else None
    found = re.match(rb"HTTP/1\.[01] (\d{3})\b", answer)
    if found is None:
        return f"no HTTP: {answer[:80]!r}"
    status = int(found[1])
    report.statuses[status] += 1
    return f"answered {status}" if status >= 500 and status != 503 else None


def _exchange(server: Server, request: Request) -> bytes:
    """Send a request and read the answer, within the limit; what cannot end is ended by closing our side."""
    deadline = time.monotonic() + LIMIT_S
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):  # it may refuse before all has come
            connection.sendall(request.data)
        if not request.whole:
            connection.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                return _read(connection, request)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        return _read(connection, request)


def _read(connection: socket.socket, request: Request) -> bytes:
    """Read until the answer is whole, or the server closes."""
    answer = bytearray()
    with contextlib.suppress(ConnectionError):
        while block := connection.recv(65536):
            answer += block
            if answer.startswith(b"HTTP/1.1 100 "):
                del answer[: answer.index(b"\r\n\r\n") + 4]
            head, ended, body = bytes(answer).partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            if ended and (request.data.startswith(b"HEAD ") or (length is not None and len(body) >= int(length[1]))):
                break
    return bytes(answer)


def _request(method: str, target: str, body: bytes = b"", *more: str, length: object = None) -> bytes:
    said = len(body) if length is None else length
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {said}", *more]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body


def _route(draw: random.Random) -> Request:
    """Any route, any method, odd headers, a small body."""
    path = draw.choice(ROUTES)
    for _ in range(draw.choice((0, 0, 1, 2))):
        at = draw.randrange(1, len(path) + 1)
        path = (
            path[:at] + draw.choice(("%00", "%2e%2e%2f", "..", "//", "?a=%ff", "é", "%", "%zz", "a" * 9000)) + path[at:]
        )
    body = draw.choice((b"", b"{}", b"null", b"\x00", json.dumps(PREDICT).encode()))
    more = draw.sample(HEADERS, draw.choice((0, 0, 1, 2)))
    return Request("route", _request(draw.choice(METHODS), path, body, *more))


def _json(draw: random.Random) -> Request:
    """A right request, one or two of whose values or names are odd; the JSON itself may be damaged by that."""
    path, record = draw.choice((("/predict", PREDICT), *(("/v2/models/reviews/infer", infer) for infer in INFER)))
    text = json.dumps(record)
    for _ in range(draw.choice((0, 1, 1, 2))):
        places = [found.span() for found in re.finditer(r'"[^"]*"|\d+|true|\[[^\[\]{}]*\]|\{[^{}]*\}', text)]
        start, end = draw.choice(places or [(0, len(text))])
        text = text[:start] + draw.choice(ODD) + text[end:]
    if draw.random() < 0.1:
        text = text.replace("{", '{"inputs": [], "texts": "", ', 1)  # names twice
    body = text.encode("latin-1" if draw.random() < 0.1 else "utf-8", "replace")
    if draw.random() < 0.1:
        return Request("json", _request("POST", path, gzip.compress(body), "Content-Encoding: gzip"))
    return Request("json", _request("POST", path, body, *draw.sample(HEADERS, draw.choice((0, 0, 0, 1)))))


def _binary(draw: random.Random) -> Request:
    """A request with binary tensors, which lies about a length or whose tensors are damaged."""
    if draw.random() < 0.5:
        data = [bytes_tensor(b"slow", "Владивосток".encode())]
        tensors = [{"name": "text", "shape": [2], "datatype": "BYTES"}]
    else:
        data = [(1).to_bytes(8, "little") * 3] * 2
        tensors = [{"name": name, "shape": [1, 3], "datatype": "INT64"} for name in ("input_ids", "attention_mask")]
    lie = draw.choice(("nothing", "header", "size", "shape", "tensor", "tensor", "datatype", "json too"))
    sizes = [draw.choice((-1, 0, 1, 2**31, 2**63, 2**64, 1.5, "5", None)) if lie == "size" else len(x) for x in data]
    inputs = [{**x, "parameters": {"binary_data_size": size}} for x, size in zip(tensors, sizes, strict=True)]
    if lie == "shape":
        inputs[0]["shape"] = draw.choice(([], [-1], [2**62, 4], [2, 1], [1], [3], [0], "2", [[2]], [2**64]))
    if lie == "datatype":
        inputs[-1]["datatype"] = draw.choice(("INT32", "FP16", "BOOL", "UINT64", "FP64", "", "BF16", 1))
    if lie == "json too":
        inputs[0]["data"] = ["a", "b"]
    start = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": draw.random() < 0.5}}).encode()
    rest = bytearray(b"".join(data))
    for _ in range(draw.randrange(1, 4) if lie == "tensor" else 0):
        at = draw.randrange(len(rest))
        if draw.random() < 0.5:
            rest[at] = draw.randrange(256)
        else:
            rest[at : at + draw.randrange(8)] = draw.randbytes(draw.randrange(8))
    length = draw.choice(("0", "1", "-1", "99999", "0x5", "²", "5, 5", "9" * 40)) if lie == "header" else len(start)
    more = f"Inference-Header-Content-Length: {length}"
    return Request(f"binary, {lie}", _request("POST", "/v2/models/reviews/infer", start + rest, more))


def _framing(draw: random.Random) -> Request:
    """A right body whose length is told wrongly, twice, in chunks, or not at all."""
    body = json.dumps(PREDICT).encode()
    start = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
    parts = b"".join(b"%x\r\n%b\r\n" % (len(body[n : n + 7]), body[n : n + 7]) for n in range(0, len(body), 7))
    kinds: dict[str, tuple[bytes, bool]] = {
        "chunks": (chunked + parts + b"0\r\n\r\n", True),
        "chunks with extensions": (chunked + parts.replace(b"7\r\n", b"7;a=b\r\n") + b"0\r\na: b\r\n\r\n", False),
        "chunks without end": (chunked + parts, False),
        "a chunk that lies": (chunked + b"ffffffffffffffff\r\n" + body, False),
        "a chunk of no number": (chunked + b"g\r\n" + body, False),
        "length and chunks": (
            start + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n",
            False,
        ),
        "length too long": (_request("POST", "/predict", body, length=len(body) + draw.randrange(1, 999)), False),
        "length too short": (_request("POST", "/predict", body, length=draw.randrange(len(body))), False),
        "no length": (
            _request("POST", "/predict", body, length=draw.choice(("", "a", "-5", "+5", "1e2", "9" * 40))),
            False,
        ),
        "length twice": (_request("POST", "/predict", body, "Content-Length: 3"), False),
        "a length of a terabyte": (_request("POST", "/predict", body, length=2**40), False),
        "HTTP/1.0": (start.replace(b"1.1", b"1.0") + b"Content-Length: %d\r\n\r\n" % len(body) + body, True),
        "HTTP/0.9": (b"GET /\r\n", False),
        "HTTP/9.9": (start.replace(b"1.1", b"9.9") + b"\r\n", False),
        "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), False),
        "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(64), False),
        "line feeds alone": (_request("POST", "/predict", body).replace(b"\r\n", b"\n"), False),
        "no host": (b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n", False),
        "many headers": (start + b"a: b\r\n" * 5000 + b"\r\n", False),
        "a head without end": (start + b"a: " + b"b" * 200_000, False),
        "two requests": (_request("POST", "/predict", body).replace(b"Connection: close\r\n", b"") * 2, True),
        "bytes": (draw.randbytes(draw.randrange(1, 400)), False),
    }
    kind = draw.choice(list(kinds))
    return Request(f"framing, {kind}", *kinds[kind])


def _damaged(draw: random.Random) -> Request:
    """A request as any of the others, with bytes of it flipped, cut out, put in, doubled, or its end cut off."""
    data = bytearray(draw.choice((_route, _json, _binary))(draw).data)
    for _ in range(draw.randrange(1, 4)):
        at, n = draw.randrange(len(data) + 1), draw.randrange(1, 9)
        how = draw.choice(("flip", "cut out", "put in", "double", "cut off"))
        if how == "flip":
            data[at : at + 1] = bytes(byte ^ draw.randrange(1, 256) for byte in data[at : at + 1])
        elif how == "cut out":
            del data[at : at + n]
        elif how == "put in":
            data[at:at] = draw.randbytes(n)
        elif how == "double":
            data[at:at] = data[max(0, at - n) : at]
        else:
            del data[at:]
    return Request("damaged", bytes(data), whole=False)
