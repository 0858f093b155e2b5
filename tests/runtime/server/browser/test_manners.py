"""The page by keyboard, its errors and token, and where it sends what is typed."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.browser
TEXT = "the film was bright"


def test_the_keyboard_reaches_everything_and_the_focus_is_seen(page: Any) -> None:
    keys = ActionChains(page.browser)
    assert page.run("return document.activeElement.id") == "field-text"
    keys.send_keys(TEXT, Keys.ENTER).perform()
    page.answers("tone", "mood")
    need = page.run(
        """const all = document.querySelectorAll('textarea, input, button, summary');
        return [...all].filter(e => e.checkVisibility()).length"""
    )
    seen = []
    for _ in range(need):
        seen.append(
            page.run(
                """const e = document.activeElement, s = getComputedStyle(e);
                const name = e.id || e.name || e.closest('.card')?.dataset.model || e.type;
                return [name, s.outlineStyle, parseFloat(s.outlineWidth)]"""
            )
        )
        keys.send_keys(Keys.TAB).perform()
    names = ["field-text", "tone", "mood", "every", "none", "submit", "clear", "tone", "mood"]
    assert [name for name, *_ in seen] == names
    assert need == len(names)
    assert all(style == "solid" and width >= 2 for _, style, width in seen)


def test_escape_clears_and_shift_enter_starts_a_line(page: Any) -> None:
    page.type("a")
    ActionChains(page.browser).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).send_keys("b").perform()
    assert page.run("return document.getElementById('field-text').value") == "a\nb"
    page.answers("tone", "mood")
    page.type(Keys.ESCAPE)
    page.wait("return [...document.querySelectorAll('.card .label')].every(l => l.textContent === 'No text yet')")
    assert page.run("return document.getElementById('field-text').value") == ""
    assert page.run("return document.getElementById('said').textContent") == ""


def test_fast_typing_is_not_a_question_per_letter(page: Any) -> None:
    page.requests()
    keys = ActionChains(page.browser)
    for letter in TEXT:
        keys.send_keys(letter).pause(0.03)
    keys.perform()
    page.wait("return document.getElementById('said').textContent !== ''")
    page.answers("tone", "mood")
    asked = [json.loads(r["postData"])["texts"][0] for r in page.requests() if r["method"] == "POST"]
    assert asked[-1] == TEXT
    assert len(set(asked)) < len(TEXT) / 4


def test_the_servers_sentence_is_shown_and_read_out(page: Any) -> None:
    page.run("document.getElementById('field-text').value = 'x'.repeat(2 << 20)")
    page.run("document.getElementById('ask').requestSubmit()")
    page.wait("return document.querySelector('#error p')")
    (sentence,) = page.sentences()
    assert sentence.startswith("body: got more than 2097152 bytes")
    assert page.run("return document.getElementById('error').getAttribute('role')") == "alert"
    assert (
        page.run("return [...document.querySelectorAll('.card .label')].map(l => l.textContent)") == ["No answer"] * 2
    )
    page.type(Keys.ESCAPE)
    page.type(TEXT)
    page.answers("tone", "mood")
    assert page.sentences() == []


def test_a_busy_server_says_when_to_try_again(page: Any) -> None:
    page.run(
        """const real = window.fetch;
        const refused = () => new Response('{"error": "queue: got 9 texts, need at most 8; send fewer"}',
            {status: 429, headers: {'Retry-After': '3'}});
        window.fetch = async (path, options) => path === 'predict' ? refused() : real(path, options);"""
    )
    page.type(TEXT)
    page.wait("return document.querySelector('#error p')")
    assert page.sentences() == ["queue: got 9 texts, need at most 8; send fewer. Try again in 3 s."]


def test_a_server_that_has_gone_is_said(page: Any) -> None:
    page.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    page.type(TEXT)
    page.wait("return document.querySelector('#error p')")
    assert page.sentences() == ["server: no answer, need one that runs; start it again or wait"]


def test_a_token_is_asked_for_and_kept_in_this_tab_only(
    page_of: Callable[..., Any], golden: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text("open-sesame-0123456789abcdef\n", encoding="utf-8")
    file.chmod(0o600)
    page = page_of(golden / "both", "--token-file", file)
    page.wait("return !document.getElementById('token').hidden")
    assert page.run("return document.activeElement.id") == "token-value"
    assert len(page.sentences()) == 1
    ActionChains(page.browser).send_keys("wrong", Keys.ENTER).perform()
    page.wait("return !document.getElementById('token').hidden && document.activeElement.id === 'token-value'")
    ActionChains(page.browser).send_keys("open-sesame-0123456789abcdef", Keys.ENTER).perform()
    page.wait("return document.querySelector('.card')")
    page.type(TEXT)
    page.answers("tone", "mood")
    assert page.run("return [document.getElementById('token').hidden, localStorage.length, document.cookie]") == [
        True,
        0,
        "",
    ]
    assert page.sentences() == []
    assert page.run("return Object.values(sessionStorage)") == ["open-sesame-0123456789abcdef"]


def test_texts_go_to_this_server_only_and_are_not_kept(page: Any) -> None:
    page.browser.get(page.url)
    page.wait("return document.querySelector('.card')")
    page.type(TEXT)
    page.answers("tone", "mood")
    sent = page.requests()
    assert {r["url"].removeprefix(page.url) for r in sent} >= {
        "/",
        "/page/page.js",
        "/page/page.css",
        "/v2/models",
        "/predict",
    }
    assert [r["url"] for r in sent if not r["url"].startswith(f"{page.url}/")] == []
    assert [r["url"] for r in sent if "film" in r["url"]] == []
    kept = "return [localStorage.length, sessionStorage.length, document.cookie, location.href]"
    assert page.run(kept) == [0, 0, "", f"{page.url}/"]
    page.browser.refresh()
    page.wait("return document.querySelector('.card')")
    assert page.run("return document.getElementById('field-text').value") == ""
    # A browser may ask a spelling service of another host, and keeps what it completes.
    hints = "const field = document.getElementById('field-text'); return [field.spellcheck, field.form.autocomplete]"
    assert page.run(hints) == [False, "off"]


def test_no_script_or_style_is_blocked_and_another_host_is(page: Any) -> None:
    page.type(TEXT)
    page.answers("tone", "mood")
    assert [e for e in page.browser.get_log("browser") if "Content Security Policy" in e["message"]] == []
    page.run("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.2:9/x.png'}))")
    page.wait("return true")
    assert any("Content Security Policy" in e["message"] for e in page.browser.get_log("browser"))


def test_a_hidden_tab_reads_no_load(page: Any) -> None:
    page.requests()
    page.wait("return performance.getEntriesByName(location.origin + '/metrics').length >= 2")
    page.run("Object.defineProperty(document, 'visibilityState', {value: 'hidden', configurable: true})")
    time.sleep(0.5)  # what is under way ends
    page.requests()
    time.sleep(2.5)
    assert page.requests() == []
    page.run("delete document.visibilityState")
    page.wait("return performance.getEntriesByName(location.origin + '/metrics').length >= 3")
