"""What the page shows of models, answers and load."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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


def answer_with(page: Any, path: str, answer: object) -> None:
    """From now on the page gets this answer from a path."""
    page.run(
        """window.real ??= window.fetch; window.canned ??= {}; window.canned[arguments[0]] = arguments[1];
        window.fetch = async (path, options) => window.canned[path]
            ? new Response(window.canned[path]) : window.real(path, options)""",
        path,
        json.dumps(answer),
    )


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


def test_of_many_labels_the_eight_best_are_shown_and_none_is_read_as_html(page: Any) -> None:
    probabilities = {f"<b>{n}</b>": n / 190 for n in range(20)}
    prediction = {"label": "<b>19</b>", "probabilities": probabilities, "truncated": False}
    answer_with(page, "predict", {"predictions": [{**prediction, "tone": prediction, "mood": prediction}]})
    page.type(TEXT)
    shown = page.answers("tone", "mood")["tone"]
    assert shown["label"] == "<b>19</b>"
    assert [name for name, *_ in shown["bars"]] == [f"<b>{n}</b>" for n in range(19, 11, -1)]
    assert page.run("return document.querySelector('.bars li:last-child').textContent") == "and 12 more"
    assert page.run("return document.querySelectorAll('b').length") == 0


def test_a_model_that_comes_or_goes_is_seen_and_the_text_stays(page: Any) -> None:
    page.type(TEXT)
    page.answers("tone", "mood")
    answer_with(page, "v2/models", {"models": ["tone"]})
    page.wait("return document.querySelectorAll('.card').length === 1")
    page.answers("tone")
    answer_with(page, "v2/models", {"models": ["tone", "mood"]})
    page.wait("return document.querySelectorAll('.card').length === 2")
    assert set(page.answers("tone", "mood")) == {"tone", "mood"}
    assert page.run("return document.getElementById('field-text').value") == TEXT
