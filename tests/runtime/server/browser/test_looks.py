"""The page as it looks: phones, light and dark, contrast, motion."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

CONTRASTS = """
const rgb = (color) => { const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number); return {r, g, b, a}; };
const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ({r, g, b}) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const ground = (e) => {
    for (; e; e = e.parentElement) {
        const color = getComputedStyle(e).backgroundColor;
        if (rgb(color).a === 1) return color;
    }
    return 'rgb(255, 255, 255)';
};
const ratio = (a, b) => {
    const [dark, bright] = [light(rgb(a)), light(rgb(b))].sort((x, y) => x - y);
    return (bright + 0.05) / (dark + 0.05);
};
const said = (e) => e.value || [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
const seen = (e) => e.checkVisibility() && !e.closest('.unseen, noscript, svg');
const texts = [...document.body.querySelectorAll('*')].filter(e => seen(e) && said(e));
const bars = [...document.querySelectorAll('.bar')];
return [texts.map(e => [e.localName + '.' + e.className, ratio(getComputedStyle(e).color, ground(e))]),
    bars.map(e => ['bar', ratio(getComputedStyle(e).backgroundColor, ground(e.parentElement))])];
"""


def filled(page: Any) -> None:
    """Show all that the page can show: answers, model cards, the token field and an error."""
    page.emulate(prefers_reduced_motion="reduce")
    page.type(f"the film was bright {'x' * 120}")
    page.answers("tone", "mood")
    page.run(
        """document.querySelectorAll('details').forEach(d => d.open = true);
        document.getElementById('token').hidden = false;
        document.querySelector('.card').children[2].append(
            Object.assign(document.createElement('span'), {className: 'mark', textContent: 'The text is too long.'}));
        document.getElementById('error').append(
            Object.assign(document.createElement('p'), {textContent: 'texts[0]: ' + 'y'.repeat(200)}))"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_bars_stand_out_from_their_ground(scheme: str, page: Any) -> None:
    filled(page)
    page.emulate(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    texts, bars = page.run(CONTRASTS)
    names = {name for name, _ in texts}
    assert names >= {
        "h1.",
        "label.",
        "textarea.",
        "button.",
        "span.mark",
        "span.value",
        "p.times",
        "p.label",
        "p.hint",
        "dt.",
        "dd.",
    }
    assert [each for each in texts if each[1] < 4.5] == []
    assert len(bars) == 4
    assert [each for each in bars if each[1] < 3] == []
    dark = page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 24)"
    assert dark == (scheme == "dark")


def test_a_faint_text_would_be_found(page: Any) -> None:
    page.run("document.documentElement.style.setProperty('--faint', '#888')")
    assert [each for each in page.run(CONTRASTS)[0] if each[1] < 4.5] != []


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_no_width_scrolls_sideways(width: int, page: Any) -> None:
    filled(page)
    size = {"width": width, "height": 640, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    sideways = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    needed, there = page.run(sideways)
    assert needed == there
    assert width - 20 <= there <= width  # a scrollbar may take some
    outside = """const there = document.documentElement.clientWidth;
        return [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > there).length"""
    assert page.run(outside) == 0
    page.run("document.querySelector('h2').style.cssText = 'white-space: nowrap; width: 2000px'")
    assert page.run(sideways)[0] > width


def test_bars_move_only_for_those_who_want_it(page: Any) -> None:
    page.type("bright")
    page.answers("tone", "mood")
    moves = "return getComputedStyle(document.querySelector('.bar')).transitionDuration"
    assert page.run(moves) == "0.15s"
    page.emulate(prefers_reduced_motion="reduce")
    assert page.run(moves) == "0s"


def test_one_model_has_the_same_page(page_of: Callable[..., Any], golden: Path) -> None:
    page = page_of(golden / "reviews")
    page.type("bright")
    assert list(page.answers("reviews")) == ["reviews"]
    assert page.run("return document.querySelectorAll('main h2').length") == 2
