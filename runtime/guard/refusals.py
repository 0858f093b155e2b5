"""A refusal -> one JSON sentence that the client still reads when the rest of its request is not read."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

LINGER_S = 1.0
"""How long a refused client may go on sending. A connection that is closed with data unread is reset, and a reset
destroys the answer on its way to a client that is still sending."""


COUNT = "count_refusal"
"""Key in the state of a server (`app_state` of uvicorn's protocol, `scope["state"]`) of what counts its refusals: a
function of the status. Without it they are not counted."""


def count(state: Mapping[str, Any], status: int) -> None:
    """Count a refusal of the server with this state."""
    if COUNT in state:
        state[COUNT](status)


def sentence_body(sentence: str) -> bytes:
    """Encode a refusal as all routes do: {"error": "where: got what, need what; do what"}."""
    return msgspec.json.encode({"error": sentence})


def has_body(scope: Scope) -> bool:
    """Say whether a request announces a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


async def refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    sentence: str,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Answer a request with a refusal, and count it; if it has a body, read that away for a while, then close.

    Args:
        scope: the request.
        receive: where its body comes from; a part of the body may have been read.
        send: where the answer goes.
        status: HTTP status.
        sentence: the refusal; it must not repeat the request.
        headers: added to the answer's headers; lower-case names.
    """
    count(scope.get("state", {}), status)
    body, unread = sentence_body(sentence), has_body(scope)
    answer = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    if unread:
        answer.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": answer})
    await send({"type": "http.response.body", "body": body, "more_body": unread})
    if not unread:
        return
    try:
        async with asyncio.timeout(LINGER_S):
            more = True
            while more:
                more = (await receive()).get("more_body", False)  # False too when the client has gone
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
