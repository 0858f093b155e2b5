"""The page's files over HTTP. What they do in a browser: browser/."""

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from ptexport.runtime.server import page

FOLDER = Path(page.__file__).parent / "static"
PATHS = ["/", *(f"/page/{path.name}" for path in sorted(FOLDER.iterdir()) if path.name != "index.html")]


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=page.page_routes()))


def test_every_file_of_the_folder_is_served_and_nothing_else(client: TestClient) -> None:
    assert sorted(route.path for route in page.page_routes()) == sorted(PATHS)
    for path in PATHS:
        assert (
            client.get(path).content == (FOLDER / (path.removeprefix("/page/").strip("/") or "index.html")).read_bytes()
        )
    for path in (
        "/page/",
        "/page/index.html",
        "/page/nothing.js",
        "/page/../page.py",
        "/page/..%2Fpage.py",
        "/page//etc/passwd",
    ):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize("path", PATHS)
def test_headers_keep_the_page_to_itself(path: str, client: TestClient) -> None:
    headers = client.get(path).headers
    assert headers["content-security-policy"].split("; ")[0] == "default-src 'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    kinds = {"": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert headers["content-type"] == f"{kinds[path.rpartition('.')[2].strip('/')]}; charset=utf-8"


@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_the_browser_has_is_not_sent_again(path: str, client: TestClient) -> None:
    first = client.get(path)
    etag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        again = client.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_head_is_get_without_the_body(client: TestClient) -> None:
    for path in PATHS:
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert dict(head.headers) == dict(got.headers)
        assert client.post(path).status_code == 405


def test_the_files_name_no_other_host_and_hold_no_inline_script_or_style() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert re.findall(r"https?:|//[a-z]+\.", text) == []
        assert re.findall(r"innerHTML|insertAdjacentHTML|eval\(|setAttribute\(.style|localStorage|cookie", text) == []
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<style|style=| on\w+=|<script(?! type=\"module\" src=)", html) == []
