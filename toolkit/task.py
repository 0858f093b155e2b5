"""A verbalizer on a loaded backbone: compiles templates, makes prompts and what scores them; trains nothing."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ptexport.runtime.errors import ModelError, TrainError, reason
from ptexport.runtime.manifest import Read
from ptexport.runtime.tokens import TextEncoder
from ptexport.toolkit import processes
from ptexport.toolkit.backbone import Backbone
from ptexport.toolkit.classifier import PromptClassifier
from ptexport.toolkit.encoder import OwnRows, PrefixEncoder, PromptEncoder, SoftPrompt
from ptexport.toolkit.facts import BackboneFacts
from ptexport.toolkit.methods import EncoderKind, Head, Method
from ptexport.toolkit.scoring import Scorer
from ptexport.toolkit.template import Template
from ptexport.toolkit.tokenizer import CompiledTemplate, compile_template
from ptexport.toolkit.tuning import Tunable
from ptexport.toolkit.verbalizer import Verbalizer
from ptexport.toolkit.words import WordTokenizer

if TYPE_CHECKING:
    from ptexport.toolkit.asked import TrainConfig


DEFAULT_MAX_LENGTH = 512
"""Most tokens in one row, where the user asks for nothing else and the backbone takes as many."""

_SCORED_AT_ONCE = 4  # times the batch of a training step, whose gradients take more memory than three more batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is trained, settled.

    Attributes:
        method: what its virtual tokens are and what is tuned.
        encoder: the prompt encoder.
        head: label words, or a linear layer.
    """

    method: Method
    encoder: EncoderKind
    head: Head


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRows:
    """The rows of a backbone's own tables that a task reads; see `OwnRows`.

    Attributes:
        backbone: on the CPU or, as far as it is trained, on the device of `table`.
        table: its embeddings.
        mask_id: the [MASK] token's id; None: no mask slot.
        word_ids: of each label's words; none for a linear head.
    """

    backbone: Backbone
    table: nn.Embedding
    mask_id: int | None
    word_ids: list[list[int]]

    def mask(self) -> Tensor:
        """The mask slot's row, float [1 or 0, e]."""
        return self.table.weight[[] if self.mask_id is None else [self.mask_id]]

    def labels(self) -> tuple[Tensor, Tensor]:
        """Label rows and biases, float [c, h] and [c]."""
        rows, bias = self.backbone.label_rows(self.word_ids)
        return rows.to(self.table.weight.device), bias.to(self.table.weight.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedRows:
    """The same of a backbone that is frozen, read once: labels may be as many as its vocabulary has words."""

    mask_row: Tensor
    label_rows: tuple[Tensor, Tensor]

    def mask(self) -> Tensor:
        """The mask slot's row, float [1 or 0, e]."""
        return self.mask_row

    def labels(self) -> tuple[Tensor, Tensor]:
        """Label rows and biases, float [c, h] and [c]."""
        return self.label_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one training needs besides rows.

    Attributes:
        config: the training, as asked for.
        choice: what is trained.
        verbalizer: labels and their words.
        tunable: the backbone, and what of it is trained.
        classifier: the backbone as trained and traced, on the device asked for.
    """

    config: "TrainConfig"
    choice: Choice
    verbalizer: Verbalizer
    tunable: Tunable
    classifier: PromptClassifier

    @classmethod
    def prepare(
        cls, config: "TrainConfig", choice: Choice, verbalizer: Verbalizer, backbone: Backbone, device: torch.device
    ) -> "Task":
        """Make of the backbone what is trained, put it on its device and choose what it reads."""
        read = read_of(choice.head, config.pool, backbone.facts)
        torch.manual_seed(config.settings.seed)  # of what LoRA starts with
        tunable = Tunable.of(backbone, choice.method.tuned, lora_rank=config.settings.lora_rank)
        classifier = tunable.backbone.classifier(read).to(device)
        return cls(config=config, choice=choice, verbalizer=verbalizer, tunable=tunable, classifier=classifier)

    @property
    def backbone(self) -> Backbone:
        """The backbone that is trained, or frozen."""
        return self.tunable.backbone

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
            mask_slot=self.classifier.read == "mask",
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
        frozen = self.choice.method.tuned == "nothing"
        changes = not frozen or any(id_ >= self.classifier.vocab for id_ in leading_ids)
        return Scorer(
            classifier=self.classifier,
            encoder=encoder,
            leading_ids=leading_ids,
            trains_leading=bool(leading_ids) and changes,
            reads_once=folds and not changes and compiled.has_rows,
            batch_rows=_SCORED_AT_ONCE * self.config.settings.batch_size,
        )

    def prompt(self, template: Template) -> SoftPrompt:
        """Make what is trained, on the classifier's device; of a hand-written template it is what is fixed."""
        linear = self.choice.head == "linear"
        width = self.backbone.model.config.hidden_size
        own: OwnRows = TableRows(
            backbone=self.backbone,
            table=self.classifier.table,
            mask_id=self._mask_id() if self.classifier.read == "mask" else None,
            word_ids=[] if linear else self._word_ids(template),
        )
        if self.choice.method.tuned == "nothing" and not linear:
            own = FixedRows(mask_row=own.mask(), label_rows=own.labels())
        prefixed = self.choice.method.virtual_token == "states"
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
                start = self.classifier.leading_states(ids, self.classifier.table.weight[:1])
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


def read_of(head: Head, pool: Literal["mean", "first"] | None, facts: BackboneFacts) -> Read:
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


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 itself, rather than slowly by way of fp32; false where torch cannot tell."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict[str, bool])()  # older torch cannot tell
        return any(has for name, has in capabilities.items() if "bf16" in name)
    return False


def find_device(name: str) -> torch.device:
    """Find a device: `auto` is the first accelerator there is, or the CPU; of several processes, each has its own.

    Raises:
        TrainError: torch has no such device here, or several processes are to share one.
    """
    if processes.several():
        if name != "auto":
            raise TrainError(f"device {name}: each of several processes has its own; leave it out")
        return processes.device()
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:  # which of the two depends on how this torch was built
        why = reason(e) if len(reason(e)) < 100 else "torch knows no device of that name"
        raise TrainError(f"device {name}: not to be had ({why}); use auto or cpu") from e
