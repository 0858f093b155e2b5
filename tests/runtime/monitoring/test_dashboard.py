"""examples/deploy/grafana.json asks for metrics that exist, by labels that they have."""

import json
import re
from pathlib import Path
from typing import Any

from ptexport.runtime.monitoring.metric_names import METRICS

BOARD = json.loads((Path(__file__).parents[3] / "examples" / "deploy" / "grafana.json").read_text(encoding="utf-8"))
METRIC = re.compile(r"\b(?:nv|te|ptexport|process)_\w+")


def series() -> dict[str, set[str]]:
    """List the labels of every series that a query may name."""
    found: dict[str, set[str]] = {}
    for metric in METRICS.values():
        if metric.kind == "histogram":
            found |= {f"{metric.name}_{part}": set(metric.labels) for part in ("sum", "count")}
            found[f"{metric.name}_bucket"] = {*metric.labels, "le"}
        else:
            found[metric.name] = set(metric.labels)
    return found


def wrong(expression: str, legend: str) -> list[str]:
    """List what an expression asks for and no metric has."""
    names = METRIC.findall(expression)
    known = series()
    problems = [name for name in names if name not in known] or ([] if names else ["no metric"])
    labels = {label for name in names for label in known.get(name, set())} | {"instance"}
    asked = re.findall(r"(\w+)=~?\"", expression) + re.findall(r"\{\{(\w+)\}\}", legend)
    for group in re.findall(r"by \(([^)]*)\)", expression):
        asked += re.findall(r"\w+", group)
    return problems + [label for label in asked if label not in labels]


def targets() -> list[dict[str, Any]]:
    return [target for panel in BOARD["panels"] for target in panel["targets"]]


def test_every_expression_names_metrics_and_labels_that_exist() -> None:
    assert [found for target in targets() if (found := wrong(target["expr"], target["legendFormat"]))] == []


def test_the_check_finds_what_does_not_exist() -> None:
    assert wrong("rate(te_request_total[1m])", "") == ["te_request_total"]
    assert wrong("sum by (code) (nv_inference_count)", "") == ["code"]
    assert wrong('te_queue_size{model="a"}', "") == ["model"]
    assert wrong("te_queue_size", "{{reason}}") == ["reason"]
    assert wrong("up", "") == ["no metric"]


def test_variables_name_metrics_that_exist() -> None:
    queries = [variable["definition"] for variable in BOARD["templating"]["list"] if variable["type"] == "query"]
    assert queries
    assert all(set(METRIC.findall(query)) <= set(series()) for query in queries)


def test_panels_have_a_place_and_an_id_of_their_own() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in BOARD["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(places)
