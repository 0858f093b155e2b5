"""The page in a browser: what it shows, by mouse and keyboard, and where it sends what is typed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from tiny import Quiet, train_tiny

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.runtime import Engine

pytestmark = pytest.mark.browser
TEXT = "the film was bright"


@pytest.fixture(scope="module")
def engine(golden: Path) -> Engine:
    return Engine.open(golden / "both")


def check(shown: dict[str, Any], prediction: Any) -> None:
    """Compare a card with a prediction: the label, and each label's number and bar, the highest first."""
    best = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])
    assert shown["label"] == prediction.label
    assert [(name, number) for name, number, _ in shown["bars"]] == [(name, f"{100 * p:.1f} %") for name, p in best]
    assert [width for *_, width in shown["bars"]] == pytest.approx([p for _, p in best], abs=0.01)


def settled(page: Any) -> dict[str, Any]:
    page.emulate(prefers_reduced_motion="reduce")  # else bars may still move
    return page.answers()  # type: ignore[no-any-return]


def test_several_tasks_answer_side_by_side_as_the_engine_does(page: Any, engine: Engine) -> None:
    page.type(TEXT)
    shown = settled(page)
    assert set(shown) == {"tone", "mood"}
    for task in shown:
        check(shown[task], engine.predict([TEXT], task=task)[0])
        assert shown[task]["marks"] == []
    said = page.run("return document.getElementById('said').textContent")
    assert all(f"{task}: {shown[task]['label']}, {shown[task]['bars'][0][1]}" in said for task in shown)
    assert page.sentences() == []


def test_only_ticked_models_are_asked(page: Any) -> None:
    page.type(TEXT)
    page.answers("tone", "mood")
    page.requests()
    page.browser.find_element("css selector", "#choices input[name=mood]").click()
    assert list(page.answers("tone")) == ["tone"]
    sent = [json.loads(r["postData"]) for r in page.requests() if r["method"] == "POST"]
    assert sent == [{"texts": [TEXT], "task": "tone"}]
    page.browser.find_element("id", "every").click()
    assert set(page.answers("tone", "mood")) == {"tone", "mood"}
    page.browser.find_element("id", "none").click()
    page.wait("return !document.querySelector('.card')")


def test_a_server_with_all_is_asked_once(page: Any) -> None:
    names = page.browser.execute_async_script("fetch('v2/models').then(r => r.json()).then(arguments[0])")["models"]
    page.requests()
    page.type(TEXT)
    page.answers("tone", "mood")
    sent = [json.loads(r["postData"])["task"] for r in page.requests() if r["method"] == "POST"]
    assert set(sent) == ({"all"} if "all" in names else {"tone", "mood"})


def test_a_model_that_abstains_says_so(page_of: Callable[..., Any], abstaining: Path) -> None:
    page = page_of(abstaining)
    page.type(TEXT)
    shown = settled(page)["reviews"]
    assert shown["label"] == "No label"
    assert "abstains" in shown["marks"][0]
    assert len(shown["bars"]) == 2
    assert "abstains" in page.run("return document.getElementById('said').textContent")
    assert page.run("return document.getElementById('models').hidden")  # one model: nothing to choose


def test_a_text_that_is_cut_is_marked(page: Any) -> None:
    page.run("document.getElementById('field-text').value = 'bright '.repeat(200)")
    page.type(Keys.ENTER)
    assert all("too long" in card["marks"][0] for card in page.answers("tone", "mood").values())
    page.type(Keys.ESCAPE)
    page.type(TEXT)
    assert all(card["marks"] == [] for card in page.answers("tone", "mood").values())


def test_times_are_the_browsers_and_the_servers(page: Any) -> None:
    page.type(TEXT)
    times = page.answers("tone", "mood")["tone"]["times"]
    assert [part.split()[-1 if "browser" in part else 0] for part in times.split(" · ")] == [
        "browser",
        "queue",
        "tokenize",
        "inference",
    ]


def test_a_pair_model_has_two_fields(
    page_of: Callable[..., Any], llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    rows = folder / "rows.csv"
    first, *others = rows_file.read_text(encoding="utf-8").splitlines()
    rows.write_text("\n".join([f"text_b,{first}", *(f"it was slow,{line}" for line in others)]), encoding="utf-8")
    run = train_tiny(llama, rows, "[P*2] {text} and {text_b} is [P*2]", folder / "run")
    bundle = folder / "pairs"
    export(ExportConfig(runs=(run,), out=bundle), Quiet())
    page = page_of(bundle)
    page.type(TEXT)
    page.type(Keys.ENTER)
    page.wait("return document.querySelector('.card .label').textContent === 'No second text yet'")
    page.type("a slow story", "text_b")
    (shown,) = settled(page).values()
    check(shown, Engine.open(bundle).predict([(TEXT, "a slow story")])[0])


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


def test_fast_typing_is_one_question(page: Any) -> None:
    page.requests()
    page.type(TEXT)
    page.answers("tone", "mood")
    sent = [json.loads(r["postData"]) for r in page.requests() if r["method"] == "POST"]
    assert {row["texts"][0] for row in sent} == {TEXT}
    assert len(sent) <= 2


def test_the_last_answer_wins(page: Any, engine: Engine) -> None:
    """The first answer comes late, from a browser that does not stop the request when it is told to."""
    page.run(
        """const real = window.fetch; window.late = 0;
        window.fetch = async (path, options) => {
            const answer = await real(path, {...options, signal: undefined});
            if (options.body?.includes('slow')) { await new Promise(r => setTimeout(r, 500)); window.late++; }
            return answer;
        }"""
    )
    page.type("slow")
    page.type(Keys.ENTER)
    page.run("document.getElementById('field-text').value = arguments[0]", TEXT)
    page.type(Keys.ENTER)
    page.answers("tone", "mood")
    page.wait("return window.late > 0")
    for task, card in settled(page).items():
        check(card, engine.predict([TEXT], task=task)[0])


def test_the_servers_sentence_is_shown_and_read_out(page: Any) -> None:
    page.run("document.getElementById('field-text').value = 'x'.repeat(2 << 20)")
    page.run("document.getElementById('ask').requestSubmit()")
    page.wait("return document.querySelector('#error p')")
    (sentence,) = page.sentences()
    assert sentence.startswith("body: got more than 1048576 bytes")
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


def test_no_script_or_style_is_blocked_and_another_host_is(page: Any) -> None:
    page.type(TEXT)
    page.answers("tone", "mood")
    assert [e for e in page.browser.get_log("browser") if "Content Security Policy" in e["message"]] == []
    page.run("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.2:9/x.png'}))")
    page.wait("return true")
    assert any("Content Security Policy" in e["message"] for e in page.browser.get_log("browser"))


def test_the_model_card_tells_what_the_server_knows(page: Any) -> None:
    page.browser.find_element("css selector", "[data-model=tone] summary").click()
    page.wait("return document.querySelector('[data-model=tone] details').open")
    facts = page.run(
        """const dl = document.querySelector('[data-model=tone] dl');
        return [...dl.querySelectorAll('dt')].map(dt => [dt.textContent, dt.nextElementSibling.textContent])"""
    )
    known = dict(facts)
    assert known["Labels"] == "positive, negative"
    assert "undefined" not in str(facts)
    assert "[object" not in str(facts)


def test_the_load_panel_counts_what_was_asked(page: Any) -> None:
    page.type(TEXT)
    page.answers("tone", "mood")
    values = "return [...document.querySelectorAll('#load dd')].map(dd => dd.textContent)"
    page.wait(f"{values}.every(value => /[0-9]/.test(value))")
    rate, waiting, batch, refused, queue, inference = page.run(values)
    assert float(rate) >= 0
    assert (int(waiting), int(refused)) == (0, 0)
    assert float(batch) >= 1
    assert queue.count("ms") == inference.count("ms") == 2
    assert page.run("return document.querySelector('#spark polyline').points.length") >= 1
