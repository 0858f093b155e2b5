"""A manifest and a run's metrics -> the bundle's model card, for people."""

from ptexport.runtime.manifest import Manifest
from ptexport.toolkit.run import Metrics

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
- [Parity](parity.html) with Transformers over {rows} rows: largest difference of a logit {max_abs_diff:.1e}, no
  label differs
- Longest input: {max_length} tokens with the template ({folded_tokens} more are folded); longer texts are truncated
{calibration}- Precision {precision}, opset {opset}, IR {ir_version}

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
    graph, parity = manifest.graph, manifest.parity
    return _CARD.format(
        licence=manifest.backbone.licence or "unknown",
        name=manifest.name,
        method=_METHODS[manifest.method].format(n=graph.prompt_tokens),
        backbone=manifest.backbone.name,
        template=manifest.template,
        labels="every word that is one token" if manifest.labels is None else ", ".join(manifest.labels),
        origin=_origin(metrics),
        rows=parity.rows,
        max_abs_diff=max(c.max_abs_diff for c in (parity.alone, parity.padded_right, parity.padded_left)),
        max_length=manifest.max_length,
        folded_tokens=graph.folded_tokens,
        calibration="" if metrics is None else _calibration(manifest, metrics),
        precision=graph.precision,
        opset=graph.opset,
        ir_version=graph.ir_version,
        example=_EXAMPLES[manifest.fields[-1]],
    )


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
