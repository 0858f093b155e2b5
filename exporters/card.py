"""A manifest and a run's metrics -> the bundle's model card, for people."""

from ptexport.runtime.bundle.manifest import Manifest
from ptexport.runtime.bundle.measured import Parity, PrecisionEntry
from ptexport.toolkit.run.metrics import Metrics

_CARD = """\
---
license: {licence}
library_name: onnx
pipeline_tag: text-classification
---
# {name}

A text classifier made by ptexport: the language model {backbone} and {method}, in one ONNX graph. Needs ONNX Runtime
and `tokenizers`, no PyTorch.

- Template: `{template}`
- Labels: {labels}
- {origin}
- {parity}
- Longest input: {max_length} tokens with the template ({folded_tokens} more are folded); longer texts are truncated
{calibration}- Precision {precision}, opset {opset}, IR {ir_version}{lowered}

```python
from ptexport.runtime import Engine

print(Engine.open("{name}").{example})
```
"""


_METHODS = {
    "p-tuning": "{n} virtual tokens trained for it",
    "p-tuning --tune-backbone": "{n} virtual tokens, both trained",
    "p-tuning-v2": "keys and values of {n} positions trained for every layer of it",
    "prefix": "keys and values of {n} positions trained for every layer of it",
    "prompt-tuning": "{n} virtual tokens trained for it",
    "lora": "low-rank updates trained and merged into it",
    "fine-tune": "a linear head, both trained",
    "pet": "a hand-written template, trained for it",
    "manual": "a hand-written template, nothing trained",
    "search": "{n} words that were searched for",
}


_EXAMPLES = {
    "text": 'predict(["…"])',
    "text_b": 'predict([("…", "…")])',
    "choice": 'choose([("…", ["…", "…"])])',
}
"""How to ask, by a row's last text."""


def model_card(manifest: Manifest, metrics: Metrics | None) -> str:
    """Write the card.

    Args:
        manifest: of the bundle.
        metrics: of the training; None: it was trained elsewhere.
    """
    graph = manifest.graph
    return _CARD.format(
        licence=manifest.backbone.licence or "unknown",
        name=manifest.name,
        method=_METHODS[manifest.method].format(n=graph.prompt_tokens),
        backbone=manifest.backbone.name,
        template=manifest.template,
        labels="every word that is one token" if manifest.labels is None else ", ".join(manifest.labels),
        origin=_origin(metrics),
        parity=_parity(manifest.parity),
        max_length=manifest.max_length,
        folded_tokens=graph.folded_tokens,
        calibration="" if metrics is None else _calibration(manifest, metrics),
        precision=graph.precision,
        lowered="" if graph.lowered is None else _lowered(graph.lowered),
        opset=graph.opset,
        ir_version=graph.ir_version,
        example=_EXAMPLES[manifest.fields[-1]],
    )


def _parity(parity: Parity | None) -> str:
    if parity is None:
        return "Not run: ONNX Runtime's CPU provider has no products in this precision"
    kinds = (parity.alone, parity.padded_right, parity.padded_left)
    flips = {row for kind in kinds for row in kind.flips}
    most = max(kind.max_abs_diff for kind in kinds)
    differ = f"{len(flips)} labels differ" if flips else "no label differs"
    said = f"[Parity](parity.html) with Transformers over {parity.rows} rows"
    return f"{said}: largest difference of a logit {most:.1e}, {differ}"


def _lowered(entry: PrecisionEntry) -> str:
    """Say what a lower precision costs, and how many products are computed how."""
    said = "" if entry.accuracy is None else f"; right on {entry.accuracy:.1%} of {entry.rows} rows, "
    said += "" if entry.accuracy is None else f"{entry.accuracy_fp32:.1%} in fp32"
    counts = ", ".join(f"{count} in {recipe}" for recipe, count in sorted(entry.products.items()))
    return said + (f"; products: {counts}" if counts else "")


def _origin(metrics: Metrics | None) -> str:
    if metrics is None:
        return "Trained with PEFT and imported; its accuracy was not measured here"
    return (
        f"Test accuracy: {metrics.test_accuracy:.1%} of {metrics.n_test} rows (seed {metrics.seed}, "
        f"{metrics.n_train} rows to learn from)"
    )


def _calibration(manifest: Manifest, metrics: Metrics) -> str:
    lines = ""
    if metrics.temperature != 1:
        lines += f"- Probabilities are calibrated on {metrics.n_dev} rows: temperature {metrics.temperature:.2f}\n"
    if manifest.abstain_below is not None:
        lines += f"- Gives no label (`None`) where its largest probability is below {manifest.abstain_below:.3f}\n"
    return lines
