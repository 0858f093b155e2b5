"""Routes of the page at `GET /`: a few static files, read once."""

from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_FILES = ("index.html", "page.css", "page.js", "server.js", "cards.js", "load.js", "metrics.js", "icon.svg")
_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # ask each time; the ETag makes that cheap, and an update is seen at once
}


def page_routes() -> list[Route]:
    """Make the routes `/` and `/page/FILE`, for GET and HEAD.

    They need no token: the files hold nothing of the server's models, and the page itself asks for the token.
    """
    folder = Path(__file__).parent / "static"
    return [
        _route("/" if name == "index.html" else f"/page/{name}", name, (folder / name).read_bytes()) for name in _FILES
    ]


def _route(path: str, name: str, content: bytes) -> Route:
    etag = f'"{b64encode(sha256(content).digest()[:12], b"-_").decode()}"'
    headers = {**_HEADERS, "etag": etag, "content-type": f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"}

    async def answer(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return Route(path, answer)
