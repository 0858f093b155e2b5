"""A real `ptexport serve` process, and Debian's Chromium without a window: apt-get install chromium chromium-driver."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from ptexport.runtime.bundle.manifest import digest_of

COMMAND = [sys.executable, "-c", "from ptexport.toolkit.cli.main import main; main()", "serve"]
GOLDEN = Path(__file__).parents[3] / "golden" / "format-2"
OFFLINE = ("disable-background-networking", "disable-component-update", "disable-sync", "disable-quic", "no-first-run")


class Page:
    """The page of one server, in a browser."""

    def __init__(self, browser: Chrome, url: str) -> None:
        self.browser = browser
        self.url = url

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def open(self) -> None:
        """Open it as a first visit, and wait for what it knows of the models or for the reason why it knows none."""
        self.browser.get(self.url)
        self.run("sessionStorage.clear()")
        self.browser.get_log("performance")
        self.browser.get(self.url)
        self.wait("return !!document.querySelector('.card') || document.getElementById('error').childElementCount > 0")

    def wait(self, script: str, *arguments: object) -> None:
        """Wait until a script returns true."""
        WebDriverWait(self.browser, 15, 0.02).until(lambda _: self.run(script, *arguments), script)

    def type(self, text: str, field: str = "text") -> None:
        self.browser.find_element("id", f"field-{field}").send_keys(text)

    def answers(self, *models: str) -> dict[str, dict[str, Any]]:
        """Wait until each of these models, or else each that is asked, has answered; return what the cards show."""
        self.wait(
            """const cards = [...document.querySelectorAll('.card')];
            const wanted = arguments[0].length ? arguments[0] : cards.map(c => c.dataset.model);
            return wanted.every(m => cards.some(c => c.dataset.model === m && c.getAttribute('aria-busy') === 'false'
                && c.querySelector('.times').textContent))""",
            models,
        )
        return self.run(  # type: ignore[no-any-return]
            """return Object.fromEntries([...document.querySelectorAll('.card')].map(c => [c.dataset.model, {
                label: c.querySelector('.label').textContent,
                marks: [...c.querySelectorAll('.mark')].map(m => m.textContent),
                bars: [...c.querySelectorAll('.bars li')].filter(li => li.querySelector('.bar')).map(li => [
                    li.querySelector('.name').textContent, li.querySelector('.value').textContent,
                    li.querySelector('.bar').getBoundingClientRect().width
                    / li.querySelector('.track').clientWidth]),
                times: c.querySelector('.times').textContent}]))"""
        )

    def sentences(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('#error p')].map(p => p.textContent)")  # type: ignore[no-any-return]

    def requests(self) -> list[dict[str, Any]]:
        """List the requests that the page has sent since this was asked last."""
        entries = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        return [e["params"]["request"] for e in entries if e["method"] == "Network.requestWillBeSent"]

    def emulate(self, **features: str) -> None:
        """Set media features, such as prefers_color_scheme="dark"."""
        given = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": given})


@pytest.fixture(scope="session")
def browser() -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for option in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", *OFFLINE):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = Chrome(options, Service("/usr/bin/chromedriver"))
    yield browser
    browser.quit()


@pytest.fixture(scope="session")
def served() -> Iterator[Callable[..., str]]:
    """Serve bundles, each set of arguments once; returns the address."""
    running: dict[tuple[str, ...], tuple[subprocess.Popen[str], str]] = {}

    def serve(*arguments: object) -> str:
        words = tuple(map(str, arguments))
        if words not in running:
            process = subprocess.Popen(
                [*COMMAND, *words, "--port", "0", "--json"],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                process.communicate()
                pytest.fail(f"ptexport serve {' '.join(words)}: ended with {process.returncode}")
            running[words] = process, json.loads(line)["url"]
        return running[words][1]

    yield serve
    for process, _ in running.values():
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def page_of(browser: Chrome, served: Callable[..., str]) -> Iterator[Callable[..., Page]]:
    """Open the page of a server with these arguments."""

    def visit(*arguments: object) -> Page:
        page = Page(browser, served(*arguments))
        page.open()
        return page

    yield visit
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get("about:blank")


@pytest.fixture
def page(page_of: Callable[..., Page]) -> Page:
    """The page of a bundle of two tasks, `tone` and `mood`."""
    return page_of(GOLDEN / "both")


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def abstaining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that abstains from all but the surest labels."""
    folder = tmp_path_factory.mktemp("abstaining") / "reviews"
    folder.mkdir()
    for path in (GOLDEN / "reviews").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["tasks"][0]["abstain_below"] = 0.999
    manifest["digest"] = digest_of(manifest)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return folder
