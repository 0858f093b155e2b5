"""The page's reader of Prometheus text."""

from typing import Any

import pytest

pytestmark = pytest.mark.browser

TEXT = r"""# HELP waiting Texts that wait.
# TYPE waiting gauge
waiting 3
done_total{model="a",version="1"} 10
done_total{model="b \"x\", y",version="1"} 2.5e1 1700000000000
failed{model="a",reason="REJECTED"} 4
failed{model="a",reason="OTHER"} 100
took_bucket{model="a",le="0.01"} 5
took_bucket{model="b",le="0.01"} 5
took_bucket{model="a",le="0.1"} 9
took_bucket{model="b",le="0.1"} 10
took_bucket{model="a",le="+Inf"} 10
took_bucket{model="b",le="+Inf"} 10
took_sum{model="a"} 0.5
took_sum{model="b"} 0.25
took_count{model="a"} 10
took_count{model="b"} 10
"""


def ask(page: Any, expression: str) -> Any:
    script = f"""const [text, done] = arguments;
        import('/page/metrics.js').then(({{parse, total, histogram, since, quantile}}) => {{
            const samples = parse(text); return {expression}; }}).then(done, error => done(String(error)))"""
    return page.browser.execute_async_script(script, TEXT)


def test_counts_are_summed_over_labels(page: Any) -> None:
    assert ask(page, "total(samples, 'done')") == 35
    assert ask(page, "total(samples, 'waiting')") == 3
    assert ask(page, "total(samples, 'failed', l => l.reason === 'REJECTED')") == 4
    assert ask(page, "total(samples, 'nothing')") is None
    assert ask(page, "samples.get('done_total').map(s => s.labels.model)") == ["a", 'b "x", y']


def test_quantiles_are_prometheuss(page: Any) -> None:
    """Linear within a bucket, and the highest finite bound beyond it."""
    assert ask(page, "quantile(histogram(samples, 'took'), 0.5)") == pytest.approx(0.01)
    assert ask(page, "quantile(histogram(samples, 'took'), 0.25)") == pytest.approx(0.005)
    assert ask(page, "quantile(histogram(samples, 'took'), 0.9)") == pytest.approx(0.01 + 0.09 * 8 / 9)
    assert ask(page, "quantile(histogram(samples, 'took'), 1)") == pytest.approx(0.1)
    assert ask(page, "histogram(samples, 'nothing')") is None
    assert ask(page, "(h => [h.sum, h.count])(histogram(samples, 'took'))") == [0.75, 20]
    nothing_new = "quantile(since(histogram(samples, 'took'), histogram(samples, 'took')), 0.5)"
    assert ask(page, nothing_new) is None
