"""A run -> what the manifest records about its backbone and its task."""

from ptexport.runtime.bundle.manifest import BackboneEntry, TaskEntry
from ptexport.runtime.bundle.measured import Comparison, GoldenRow, Parity
from ptexport.toolkit.models.facts import BackboneFacts
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.template.template import Template


def backbone_entry(facts: BackboneFacts) -> BackboneEntry:
    """Describe a backbone."""
    return BackboneEntry(
        fingerprint=facts.fingerprint,
        name=facts.name,
        revision=facts.revision,
        licence=facts.licence,
        model_type=facts.model_type,
    )


def task_entry(
    name: str, run: Run, golden: list[GoldenRow], parity: Parity | None, fan_out: Comparison | None
) -> TaskEntry:
    """Describe a task and its comparison with the model."""
    config, template = run.config, Template.parse(run.config.template)
    words = None if config.open_vocabulary else config.label_words
    return TaskEntry(
        name=name,
        method=config.method + " --tune-backbone" * config.train_backbone,
        template=config.template,
        fields=template.fields,
        columns=config.columns,
        seed=0 if config.settings is None else config.settings.seed,
        labels=None if config.open_vocabulary else config.labels,
        label_words=None if words is None else dict(zip(config.labels, words, strict=True)),
        max_length=config.max_length - config.n_prefix - config.n_folded,
        abstain_below=None if run.metrics is None else run.metrics.abstain_below,
        prompt_tokens=template.n_prompt,
        folded_tokens=config.n_prefix + config.n_folded,
        parity=parity,
        fan_out=fan_out,
        golden=golden,
    )
