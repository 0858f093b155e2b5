"""A template and labels on a loaded backbone: compiles templates, creates soft prompts and their scorers."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ptexport.runtime.bundle.manifest import Pooling
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.errors import ModelError, TrainError
from ptexport.toolkit.methods import EncoderKind, Head, Method
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.models.classifier import PromptClassifier
from ptexport.toolkit.models.facts import BackboneFacts
from ptexport.toolkit.prompt.encoders import PrefixEncoder, PromptEncoder
from ptexport.toolkit.prompt.scoring import Scorer
from ptexport.toolkit.prompt.soft_prompt import BackboneTensors, FrozenBackboneTensors, LiveBackboneTensors, SoftPrompt
from ptexport.toolkit.prompt.trainable import TrainableBackbone
from ptexport.toolkit.template.compile import CompiledTemplate, Truncate, compile_template
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer

DEFAULT_MAX_LENGTH = 512
"""Maximum tokens per row, if the user gives no other number and the backbone takes as many."""

_SCORING_FACTOR = 4  # rows scored at once, in training batches: gradients take more memory than three more batches


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptModel:
    """Everything that one training needs besides rows.

    Attributes:
        method: the training method.
        encoder: the prompt encoder.
        init: initial values of virtual tokens without an encoder; see `TaskOptions`.
        verbalizer: labels and label words.
        trainable: the backbone and its trained parameters.
        classifier: the module that is trained and traced, on the training device.
        max_length: maximum tokens per row.
        truncate: which text of a pair is truncated.
        batch_size: rows per forward pass in training.
    """

    method: Method
    encoder: EncoderKind
    init: Literal["random", "words"] | None
    verbalizer: Verbalizer
    trainable: TrainableBackbone
    classifier: PromptClassifier
    max_length: int
    truncate: Truncate
    batch_size: int

    @property
    def backbone(self) -> Backbone:
        """The backbone, trained or frozen."""
        return self.trainable.backbone

    def compile(self, template: Template, *, n_prefix: int = 0) -> CompiledTemplate:
        """Compile a template with the lengths and rules of this training.

        Args:
            template: the parsed template.
            n_prefix: number of virtual tokens that are keys and values.
        """
        return compile_template(
            template,
            self.backbone.facts,
            self.backbone.tokenizer_json,
            mask_slot=self.classifier.pooling == "mask",
            max_length=self.max_length,
            n_prefix=n_prefix,
            truncate=self.truncate,
        )

    def scorer(self, compiled: CompiledTemplate) -> Scorer:
        """Create a scorer that computes the logits of the bundle: on a causal model, with the leading prompt folded."""
        folds = self.backbone.facts.causal and compiled.n_prefix == 0
        folded_ids = compiled.leading_ids if folds else []
        tokenizer_json = compiled.tokenizer_json(n_folded=len(folded_ids))
        frozen = self.method.backbone_training == "nothing"
        changes = not frozen or any(id_ >= self.classifier.vocab for id_ in folded_ids)
        return Scorer(
            classifier=self.classifier,
            encoder=TextEncoder.from_json(tokenizer_json, fields=compiled.fields),
            folded_ids=folded_ids,
            trains_folded=bool(folded_ids) and changes,
            caches_prefixes=folds and not changes and compiled.has_prompt_embeddings,
            batch_rows=_SCORING_FACTOR * self.batch_size,
        )

    def prompt(self, template: Template) -> SoftPrompt:
        """Create the task tensors of a template on the device of the classifier; those of a manual one are fixed."""
        linear = self.backbone.head == "linear"
        tensors: BackboneTensors = LiveBackboneTensors(
            backbone=self.backbone,
            table=self.classifier.table,
            mask_id=self._mask_id() if self.classifier.pooling == "mask" else None,
            word_ids=[] if linear else self._word_ids(template),
        )
        if self.method.backbone_training == "nothing" and not linear:
            tensors = FrozenBackboneTensors(mask_embedding=tensors.mask(), label_weights=tensors.labels())
        prefixed = self.method.virtual_token == "prefix_kv"
        width = self.backbone.model.config.hidden_size
        prompt = SoftPrompt(
            encoder=None if prefixed or template.n_prompt == 0 else self._encoder(template),
            prefix=self._prefix(template) if prefixed and template.n_prompt else None,
            backbone_tensors=tensors,
            head=nn.Linear(width, len(self.verbalizer.labels)) if linear else None,
        )
        if prompt.head is not None:
            nn.init.zeros_(prompt.head.bias)
        return prompt.to(self.classifier.table.weight.device)

    def _encoder(self, template: Template) -> PromptEncoder:
        scale = self.classifier.table.weight.std().item()
        width = self.backbone.facts.embedding_width
        encoder = PromptEncoder(self.encoder, template.n_prompt, width, scale=scale)
        if self.init == "words":
            encoder.embeddings.data = self.classifier.table.weight[self._start_ids(template)].detach().clone()
        return encoder

    def _prefix(self, template: Template) -> PrefixEncoder:
        """Start from the keys and values of label words, or of random tokens (Li and Liang 2021, section 7.4)."""
        if self.encoder == "lstm":
            raise AssertionError("no method computes keys and values with an LSTM")
        ids = self._start_ids(template) if self.init == "words" else self._random_ids(template.n_prompt)
        try:
            with torch.no_grad():
                start = self.classifier.prefix_kv(ids, self.classifier.table.weight[:1])
        except ModelError as e:
            raise ModelError(f"{e}; use --method p-tuning") from e
        return PrefixEncoder(self.encoder, start, width=self.backbone.facts.embedding_width)

    def _random_ids(self, count: int) -> list[int]:
        return torch.randint(self.backbone.facts.vocab, (count,)).tolist()

    def _word_ids(self, template: Template) -> list[list[int]]:
        tokenizer = WordTokenizer(self.backbone.tokenizer_json)
        unknown = self.backbone.facts.tokens.get("unk")
        return self.verbalizer.word_ids(tokenizer, spaced=template.answer_spaced, unknown=unknown)

    def _start_ids(self, template: Template) -> list[int]:
        """Return one token per virtual token, cycling over the label words (or the label names of a linear head).

        Source: Lester et al. 2021, arXiv:2104.08691, section 3.2, "class label" initialisation.
        """
        words = WordTokenizer(self.backbone.tokenizer_json)
        names = self.verbalizer.words or [(label,) for label in self.verbalizer.labels]
        ids = [id_ for label in names for word in label for id_ in words.ids(word, spaced=True)]
        return [ids[index % len(ids)] for index in range(template.n_prompt)]

    def _mask_id(self) -> int:
        return WordTokenizer(self.backbone.tokenizer_json).id(self.backbone.facts.tokens["mask"])


def choose_max_length(max_length: int | None, facts: BackboneFacts) -> int:
    """Choose the maximum tokens per row: `max_length` if given, else 512 or fewer if the backbone takes fewer."""
    return max_length or min(DEFAULT_MAX_LENGTH, facts.max_positions)


def choose_pooling(head: Head, pool: Literal["mean", "first"] | None, facts: BackboneFacts) -> Pooling:
    """Choose the hidden state that becomes logits.

    Raises:
        TrainError: `pool` is given for a head that pools nothing.
    """
    if pool is not None and (facts.causal or head == "words"):
        got = "a causal model, which uses its last token" if facts.causal else "label words, which use [MASK]"
        raise TrainError(f"pool {pool}: is for a linear head on a masked model, got {got}; leave it out")
    if facts.causal:
        return "last"
    return "mask" if head == "words" else pool or "mean"
