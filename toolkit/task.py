"""A verbalizer on a loaded backbone: compiles templates, makes prompts and what scores them; trains nothing."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ptexport.runtime.errors import TrainError, reason
from ptexport.runtime.manifest import Read
from ptexport.runtime.tokens import TextEncoder
from ptexport.toolkit.backbone import Backbone
from ptexport.toolkit.classifier import PromptClassifier
from ptexport.toolkit.encoder import PromptEncoder, SoftPrompt
from ptexport.toolkit.facts import BackboneFacts
from ptexport.toolkit.scoring import Scorer
from ptexport.toolkit.template import Template
from ptexport.toolkit.tokenizer import CompiledTemplate, compile_template
from ptexport.toolkit.verbalizer import Verbalizer
from ptexport.toolkit.words import WordTokenizer

if TYPE_CHECKING:
    from ptexport.toolkit.plan import TrainConfig


DEFAULT_MAX_LENGTH = 512
"""Most tokens in one row, where the user asks for nothing else and the backbone takes as many."""

_SCORED_AT_ONCE = 4  # times the batch of a training step, whose gradients take more memory than three more batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one training needs besides rows.

    Attributes:
        config: the training, as asked for.
        verbalizer: labels and their words.
        backbone: frozen.
        classifier: the backbone as trained and traced, on the device asked for.
    """

    config: "TrainConfig"
    verbalizer: Verbalizer
    backbone: Backbone
    classifier: PromptClassifier

    @classmethod
    def prepare(cls, config: "TrainConfig", verbalizer: Verbalizer, backbone: Backbone, device: torch.device) -> "Task":
        """Put the backbone on its device and choose what it reads."""
        classifier = backbone.classifier(read_of(config, backbone.facts)).to(device)
        return cls(config=config, verbalizer=verbalizer, backbone=backbone, classifier=classifier)

    def compile(self, template: Template) -> CompiledTemplate:
        """Compile a template with the same lengths and rules as all others of this training."""
        return compile_template(
            template,
            self.backbone.facts,
            self.backbone.tokenizer_json,
            mask_slot=self.classifier.read == "mask",
            max_length=self.config.max_length or min(DEFAULT_MAX_LENGTH, self.backbone.facts.max_positions),
            truncate=self.config.truncate,
        )

    def scorer(self, compiled: CompiledTemplate) -> Scorer:
        """Score as the bundle will: on a causal model, with the leading prompt folded."""
        leading_ids = compiled.leading_ids if self.backbone.facts.causal else []
        tokenizer_json = compiled.tokenizer_json(n_folded=len(leading_ids))
        encoder = TextEncoder.from_json(tokenizer_json, fields=compiled.fields)
        return Scorer(
            classifier=self.classifier,
            encoder=encoder,
            leading_ids=leading_ids,
            batch_rows=_SCORED_AT_ONCE * self.config.settings.batch_size,
        )

    def prompt(self, template: Template, *, with_encoder: bool) -> SoftPrompt:
        """Make what is trained, or its fixed counterpart for a hand-written template, on the classifier's device."""
        facts = self.backbone.facts
        table = self.classifier.table.weight
        label_rows, label_bias = self._label_rows(template)
        mask_row = table[self._mask_id()] if self.classifier.read == "mask" else None
        encoder = None
        if with_encoder:
            scale = table.std().item()
            encoder = PromptEncoder(self.config.encoder, template.n_prompt, facts.embedding_width, scale=scale)
            if self.config.init == "words":
                encoder.embeddings.data = self._word_rows(template)
        prompt = SoftPrompt(
            encoder,
            mask_row=mask_row,
            label_rows=label_rows,
            label_bias=label_bias,
            train_labels=self.config.head == "linear",
            embedding_width=facts.embedding_width,
        )
        return prompt.to(table.device)

    def _label_rows(self, template: Template) -> tuple[Tensor, Tensor]:
        if self.config.head == "linear":
            layer = nn.Linear(self.backbone.model.config.hidden_size, len(self.verbalizer.labels))
            return layer.weight.detach(), torch.zeros(len(self.verbalizer.labels))
        return self.backbone.label_rows(self._word_ids(template))

    def _word_ids(self, template: Template) -> list[list[int]]:
        tokenizer = WordTokenizer(self.backbone.tokenizer_json)
        unknown = self.backbone.facts.tokens.get("unk")
        return self.verbalizer.word_ids(tokenizer, spaced=template.answer_spaced, unknown=unknown)

    def _word_rows(self, template: Template) -> Tensor:
        """Embeddings of the label words, or of a linear head's label names, in turn; float [n_prompt, e].

        Source: Lester et al. 2021, arXiv:2104.08691, section 3.2, "class label" initialisation.
        """
        words = WordTokenizer(self.backbone.tokenizer_json)
        names = self.verbalizer.words or [(label,) for label in self.verbalizer.labels]
        ids = [id_ for label in names for word in label for id_ in words.ids(word, spaced=True)]
        rows: Tensor = self.classifier.table.weight[[ids[row % len(ids)] for row in range(template.n_prompt)]]
        return rows.clone()

    def _mask_id(self) -> int:
        return WordTokenizer(self.backbone.tokenizer_json).id(self.backbone.facts.tokens["mask"])


def read_of(config: "TrainConfig", facts: BackboneFacts) -> Read:
    """Which state becomes logits.

    Raises:
        TrainError: `pool` is given where nothing is pooled.
    """
    if config.pool is not None and (facts.causal or config.head == "words"):
        got = "a causal model, which is read at its last token" if facts.causal else "label words, read at [MASK]"
        raise TrainError(f"pool {config.pool}: is for a linear head on a masked model, got {got}; leave it out")
    if facts.causal:
        return "last"
    return "mask" if config.head == "words" else config.pool or "mean"


def find_device(name: str) -> torch.device:
    """Find a device: `auto` is the first accelerator there is, or the CPU.

    Raises:
        TrainError: torch has no such device here.
    """
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:  # which of the two depends on how this torch was built
        why = reason(e) if len(reason(e)) < 100 else "torch knows no device of that name"
        raise TrainError(f"device {name}: not to be had ({why}); use auto or cpu") from e
