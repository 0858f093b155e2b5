"""The model card's metadata, read by huggingface_hub as the hub reads it."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from huggingface_hub import ModelCard, metadata_load

from ptexport.exporters.card import model_card
from ptexport.runtime.bundle.manifest import Manifest
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.bundle.measured import PrecisionEntry
from ptexport.toolkit.run.metrics import Metrics
from ptexport.toolkit.run.run import Run

COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def manifest(llama_bundle: Path) -> Manifest:
    return read_manifest((llama_bundle / "manifest.json").read_bytes(), "")


@pytest.fixture(scope="module")
def metrics(llama_run: Path) -> Metrics:
    measured = Run.read(llama_run).metrics
    assert measured is not None
    return measured


def backbone(manifest: Manifest, name: str, revision: str | None) -> Manifest:
    changed = msgspec.structs.replace(manifest.backbone, name=name, revision=revision, licence="apache-2.0")
    return msgspec.structs.replace(manifest, backbone=changed)


def method(manifest: Manifest, name: str) -> Manifest:
    return msgspec.structs.replace(manifest, tasks=[msgspec.structs.replace(manifest.tasks[0], method=name)])


def in_int8(manifest: Manifest) -> Manifest:
    cost = PrecisionEntry(products={}, kept_fp32=[], costs={}, rows=9, accuracy_fp32=1.0, accuracy=1.0)
    graph = msgspec.structs.replace(manifest.graph, precision="int8", lowered=cost)
    return msgspec.structs.replace(manifest, graph=graph)


def test_the_card_of_a_bundle(llama_bundle: Path, metrics: Metrics) -> None:
    found = metadata_load(llama_bundle / "README.md")
    assert found is not None
    (index,) = found.pop("model-index")
    assert found == {
        "license": "unknown",
        "library_name": "ptexport",
        "pipeline_tag": "text-classification",
        "tags": ["onnx", "soft-prompt", "p-tuning"],
    }
    (result,) = index["results"]
    assert index["name"] == "reviews"
    assert result == {
        "task": {"type": "text-classification"},
        "dataset": {"name": f"{metrics.n_test} held-out rows", "type": "held-out-rows", "split": "test"},
        "metrics": [{"type": "accuracy", "value": round(metrics.test_accuracy, 4)}],
    }


BASES: dict[str, tuple[Callable[[Manifest], Manifest], str | None, str | None]] = {
    "an alias": (
        lambda m: backbone(m, "smollm2", "smollm2-0.1.2"),
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "adapter",
    ),
    "the other alias": (
        lambda m: method(backbone(m, "minilm", "0.1.0"), "fine-tune"),
        "sentence-transformers/all-MiniLM-L6-v2",
        "finetune",
    ),
    "a model of the hub": (lambda m: backbone(m, "somebody/tiny", COMMIT), "somebody/tiny", "adapter"),
    "one that was trained": (lambda m: method(backbone(m, "gpt2", COMMIT), "lora"), "gpt2", "finetune"),
    "one that was tuned": (
        lambda m: method(backbone(m, "gpt2", COMMIT), "p-tuning --tune-backbone"),
        "gpt2",
        "finetune",
    ),
    "a folder": (lambda m: backbone(m, "gpt2", None), None, None),
}


@pytest.mark.parametrize("case", BASES)
def test_the_base_model(case: str, manifest: Manifest, metrics: Metrics) -> None:
    change, name, relation = BASES[case]
    card = model_card(change(manifest), [metrics])
    assert card.startswith("---\nlicense: apache-2.0\n")
    data = ModelCard(card).data.to_dict()
    assert (data.get("base_model"), data.get("base_model_relation")) == (name, relation)


def test_what_was_not_measured_is_not_claimed(manifest: Manifest, metrics: Metrics) -> None:
    assert ModelCard(model_card(manifest, [metrics])).data.eval_results[0].metric_value == metrics.test_accuracy
    assert ModelCard(model_card(manifest, [None])).data.get("model-index") is None
    lowered = ModelCard(model_card(in_int8(manifest), [metrics])).data
    assert lowered.eval_results is None
    assert lowered.tags[-1] == "int8"


def test_several_tasks_have_a_result_each(manifest: Manifest, metrics: Metrics) -> None:
    tasks = [
        msgspec.structs.replace(manifest.tasks[0], name="tone"),
        msgspec.structs.replace(manifest.tasks[0], name="topic", method="manual"),
    ]
    better = msgspec.structs.replace(metrics, test_accuracy=0.875)
    data = ModelCard(model_card(msgspec.structs.replace(manifest, tasks=tasks), [metrics, better])).data
    assert data.tags == ["onnx", "soft-prompt", "p-tuning", "manual"]
    results = [(result.dataset_config, result.metric_value) for result in data.eval_results]
    assert results == [("tone", metrics.test_accuracy), ("topic", 0.875)]


def test_a_name_that_yaml_reads_as_something_else(manifest: Manifest, metrics: Metrics) -> None:
    named = msgspec.structs.replace(manifest, name="yes: #1")
    data = ModelCard(model_card(named, [metrics])).data
    assert data.model_name == "yes: #1"
