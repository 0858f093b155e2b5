"""A verbalizer on a loaded backbone: compiles templates, makes prompts and what scores them; trains nothing."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ptexport.runtime.bundle.manifest import Pooling
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.errors import ModelError, TrainError
from ptexport.toolkit.methods import Head
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.models.classifier import PromptClassifier
from ptexport.toolkit.models.facts import BackboneFacts
from ptexport.toolkit.prompt.encoders import PrefixEncoder, PromptEncoder
from ptexport.toolkit.prompt.scoring import Scorer
from ptexport.toolkit.prompt.soft_prompt import BackboneTensors, FrozenBackboneTensors, LiveBackboneTensors, SoftPrompt
from ptexport.toolkit.prompt.trainable import TrainableBackbone
from ptexport.toolkit.run.config import Choice, TrainConfig
from ptexport.toolkit.template.compile import CompiledTemplate, compile_template
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer

DEFAULT_MAX_LENGTH = 512
"""Most tokens in one row, where the user asks for nothing else and the backbone takes as many."""

_SCORED_AT_ONCE = 4  # times the batch of a training step, whose gradients take more memory than three more batches


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptModel:
    """What one training needs besides rows.

    Attributes:
        config: the training, as asked for.
        choice: what is trained.
        verbalizer: labels and their words.
        trainable: the backbone, and what of it is trained.
        classifier: the backbone as trained and traced, on the device asked for.
    """

    config: TrainConfig
    choice: Choice
    verbalizer: Verbalizer
    trainable: TrainableBackbone
    classifier: PromptClassifier

    @classmethod
    def prepare(
        cls, config: TrainConfig, choice: Choice, verbalizer: Verbalizer, backbone: Backbone, device: torch.device
    ) -> "PromptModel":
        """Make of the backbone what is trained, put it on its device and choose what it reads."""
        pooling = choose_pooling(choice.head, config.pool, backbone.facts)
        torch.manual_seed(config.settings.seed)  # of what LoRA starts with
        trainable = TrainableBackbone.of(backbone, choice.method.backbone_training, lora_rank=config.settings.lora_rank)
        classifier = trainable.backbone.classifier(pooling).to(device)
        return cls(config=config, choice=choice, verbalizer=verbalizer, trainable=trainable, classifier=classifier)

    @property
    def backbone(self) -> Backbone:
        """The backbone that is trained, or frozen."""
        return self.trainable.backbone

    def compile(self, template: Template, *, n_prefix: int = 0) -> CompiledTemplate:
        """Compile a template with the same lengths and rules as all others of this training.

        Args:
            template: the parsed template.
            n_prefix: its virtual tokens, if they are keys and values.
        """
        return compile_template(
            template,
            self.backbone.facts,
            self.backbone.tokenizer_json,
            mask_slot=self.classifier.pooling == "mask",
            max_length=self.config.max_length or min(DEFAULT_MAX_LENGTH, self.backbone.facts.max_positions),
            n_prefix=n_prefix,
            truncate=self.config.truncate,
        )

    def scorer(self, compiled: CompiledTemplate) -> Scorer:
        """Score as the bundle will: on a causal model, with the leading prompt folded."""
        folds = self.backbone.facts.causal and compiled.n_prefix == 0
        leading_ids = compiled.leading_ids if folds else []
        tokenizer_json = compiled.tokenizer_json(n_folded=len(leading_ids))
        encoder = TextEncoder.from_json(tokenizer_json, fields=compiled.fields)
        frozen = self.choice.method.backbone_training == "nothing"
        changes = not frozen or any(id_ >= self.classifier.vocab for id_ in leading_ids)
        return Scorer(
            classifier=self.classifier,
            encoder=encoder,
            leading_ids=leading_ids,
            trains_leading=bool(leading_ids) and changes,
            reads_once=folds and not changes and compiled.has_prompt_embeddings,
            batch_rows=_SCORED_AT_ONCE * self.config.settings.batch_size,
        )

    def prompt(self, template: Template) -> SoftPrompt:
        """Make what is trained, on the classifier's device; of a hand-written template it is what is fixed."""
        linear = self.choice.head == "linear"
        width = self.backbone.model.config.hidden_size
        own: BackboneTensors = LiveBackboneTensors(
            backbone=self.backbone,
            table=self.classifier.table,
            mask_id=self._mask_id() if self.classifier.pooling == "mask" else None,
            word_ids=[] if linear else self._word_ids(template),
        )
        if self.choice.method.backbone_training == "nothing" and not linear:
            own = FrozenBackboneTensors(mask_row=own.mask(), label_weights=own.labels())
        prefixed = self.choice.method.virtual_token == "prefix_kv"
        prompt = SoftPrompt(
            encoder=None if prefixed or template.n_prompt == 0 else self._encoder(template),
            prefix=self._prefix(template) if prefixed and template.n_prompt else None,
            own=own,
            head=nn.Linear(width, len(self.verbalizer.labels)) if linear else None,
        )
        if prompt.head is not None:
            nn.init.zeros_(prompt.head.bias)
        return prompt.to(self.classifier.table.weight.device)

    def _encoder(self, template: Template) -> PromptEncoder:
        # They start where the language model expects its input.
        scale = self.classifier.table.weight.std().item()
        width = self.backbone.facts.embedding_width
        encoder = PromptEncoder(self.choice.encoder, template.n_prompt, width, scale=scale)
        if self.config.init == "words":
            encoder.embeddings.data = self.classifier.table.weight[self._start_ids(template)].detach().clone()
        return encoder

    def _prefix(self, template: Template) -> PrefixEncoder:
        """Start from the keys and values that words leave: label words, or any (Li and Liang 2021, section 7.4)."""
        if self.choice.encoder == "lstm":
            raise AssertionError("no method has keys and values of an LSTM")
        ids = self._start_ids(template) if self.config.init == "words" else self._any_ids(template.n_prompt)
        try:
            with torch.no_grad():
                start = self.classifier.prefix_kv(ids, self.classifier.table.weight[:1])
        except ModelError as e:
            raise ModelError(f"{e}; use --method p-tuning") from e
        return PrefixEncoder(self.choice.encoder, start, width=self.backbone.facts.embedding_width)

    def _any_ids(self, count: int) -> list[int]:
        return torch.randint(self.backbone.facts.vocab, (count,)).tolist()

    def _word_ids(self, template: Template) -> list[list[int]]:
        tokenizer = WordTokenizer(self.backbone.tokenizer_json)
        unknown = self.backbone.facts.tokens.get("unk")
        return self.verbalizer.word_ids(tokenizer, spaced=template.answer_spaced, unknown=unknown)

    def _start_ids(self, template: Template) -> list[int]:
        """Tokens of the label words, or of a linear head's label names, in turn, one per virtual token.

        Source: Lester et al. 2021, arXiv:2104.08691, section 3.2, "class label" initialisation.
        """
        words = WordTokenizer(self.backbone.tokenizer_json)
        names = self.verbalizer.words or [(label,) for label in self.verbalizer.labels]
        ids = [id_ for label in names for word in label for id_ in words.ids(word, spaced=True)]
        return [ids[row % len(ids)] for row in range(template.n_prompt)]

    def _mask_id(self) -> int:
        return WordTokenizer(self.backbone.tokenizer_json).id(self.backbone.facts.tokens["mask"])


def choose_pooling(head: Head, pool: Literal["mean", "first"] | None, facts: BackboneFacts) -> Pooling:
    """Which state becomes logits.

    Raises:
        TrainError: `pool` is given where nothing is pooled.
    """
    if pool is not None and (facts.causal or head == "words"):
        got = "a causal model, which is read at its last token" if facts.causal else "label words, read at [MASK]"
        raise TrainError(f"pool {pool}: is for a linear head on a masked model, got {got}; leave it out")
    if facts.causal:
        return "last"
    return "mask" if head == "words" else pool or "mean"
