"""Task tensors of a checkpoint -> a run, if its logits equal the original model's."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from ptexport.runtime.bundle.manifest import Pooling
from ptexport.runtime.engine.text_encoder import Text, TextEncoder
from ptexport.runtime.errors import CheckpointError, reason
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.models.backbone import Backbone, last_layer
from ptexport.toolkit.models.checkpoint import Checkpoint
from ptexport.toolkit.models.facts import BackboneFacts
from ptexport.toolkit.prompt.scoring import TaskTensors, forward
from ptexport.toolkit.run.config import Imported, RunConfig, TaskOptions
from ptexport.toolkit.run.run import Run, TaskArrays
from ptexport.toolkit.template.compile import CompiledTemplate
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer

TOLERANCE = 1e-3
"""Maximum difference of a logit through fp32 rounding; a checkpoint that is converted incorrectly gives more."""
N_COMPARED = 8
"""Number of check rows compared with the original model; `ptexport export` compares all of them with the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A checkpoint, converted to task tensors on a backbone.

    Attributes:
        backbone: the backbone that the tensors belong to.
        compiled: the template.
        pooling: hidden state that becomes logits.
        folded_ids: ids of the leading tokens whose keys and values are in `tensors`.
        tensors: the task tensors.
    """

    backbone: Backbone
    compiled: CompiledTemplate
    pooling: Pooling
    folded_ids: list[int]
    tensors: TaskTensors

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        backbone: Backbone,
        compiled: CompiledTemplate,
        pooling: Pooling,
        *,
        label_weights: Tensor,
        label_bias: Tensor,
        prompt_embeddings: Tensor | None = None,
        prefix_kv: Tensor | None = None,
    ) -> "Conversion":
        """Convert a checkpoint; on a causal model without a prefix, the leading tokens are folded.

        Args:
            backbone: see the class.
            compiled: see the class.
            pooling: see the class.
            label_weights: float [c, h].
            label_bias: float [c].
            prompt_embeddings: float [p, e]; None: no virtual token has an embedding.
            prefix_kv: float [l, 2, 1, k, n, d]; None: no virtual token is keys and values.
        """
        facts, folded_ids = backbone.facts, []
        if prompt_embeddings is None:
            prompt_embeddings = torch.zeros(1, facts.embedding_width)  # the table needs a row
        if facts.causal and prefix_kv is None:
            folded_ids = compiled.leading_ids
            prefix_kv = backbone.classifier("last").prefix_kv(folded_ids, prompt_embeddings)
        tensors = TaskTensors(
            prompt_embeddings=prompt_embeddings,
            label_weights=label_weights,
            label_bias=label_bias,
            prefix_kv=prefix_kv,
        )
        return cls(backbone=backbone, compiled=compiled, pooling=pooling, folded_ids=folded_ids, tensors=tensors)

    @torch.no_grad()
    def logits(self, texts: Sequence[Text]) -> Tensor:
        """Compute the logits of the run, one text at a time; float [texts, c]."""
        folded = self.compiled.tokenizer_json(n_folded=len(self.folded_ids))
        encodings = TextEncoder.from_json(folded, fields=self.compiled.fields).encode(texts)
        classifier = self.backbone.classifier(self.pooling)
        return torch.cat([forward(classifier, [encoding], self.tensors) for encoding in encodings])

    def run(
        self, options: TaskOptions, imported: Imported, verbalizer: Verbalizer, rows: list[Row], *, backbone: Backbone
    ) -> Run:
        """Make a run without metrics.

        Args:
            options: what is known of the training.
            imported: where the run comes from.
            verbalizer: labels and label words.
            rows: rows for the parity check.
            backbone: the backbone before training; another one than `self.backbone`, if that was trained.
        """
        config = RunConfig.of(
            options,
            backbone=backbone.facts,
            commit=backbone.commit,
            verbalizer=verbalizer,
            compiled=self.compiled,
            pooling=self.pooling,
            n_folded=len(self.folded_ids),
            trained_backbone=None if self.backbone is backbone else self.backbone.facts,
            imported=imported,
        )
        tensors = self.tensors
        arrays = TaskArrays(
            prompt_embeddings=tensors.prompt_embeddings.numpy(),
            label_weights=tensors.label_weights.numpy(),
            label_bias=tensors.label_bias.numpy(),
            prefix_kv=None if tensors.prefix_kv is None else tensors.prefix_kv.numpy(),
        )
        return Run(
            config=config,
            metrics=None,
            trained={},
            arrays=arrays,
            tokenizer_json=self.compiled.base,
            check_rows=rows,
        )


def load_for(loader: Any, checkpoint: Checkpoint, task: str, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """Load a model in fp32 on the CPU, from safetensors alone.

    Args:
        loader: a class such as `AutoModelForSequenceClassification`.
        checkpoint: its files.
        task: what it is loaded for, for messages.
        options: other arguments of `from_pretrained`.

    Returns:
        The model, and the names of weights that the checkpoint lacks, which Transformers fills at random.

    Raises:
        CheckpointError: Transformers cannot load it.
    """
    try:
        model, loading = loader.from_pretrained(
            checkpoint.path,
            dtype=torch.float32,
            use_safetensors=True,  # no pickle
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as e:
        raise CheckpointError(f"model {checkpoint.name}: Transformers cannot load it for {task} ({reason(e)})") from e
    return model, set(loading["missing_keys"])


def head_of(model: PreTrainedModel, n_labels: int, where: str) -> tuple[Tensor, Tensor]:
    """Return weights and biases of the last linear layer of a classifier, float [c, h] and [c].

    Raises:
        CheckpointError: that layer has not one output per label.
    """
    last = last_layer(model)
    if last is None or last[1].out_features != n_labels:
        raise CheckpointError(
            f"{where}: its last linear layer is {last and last[0]}, need one with an output for each of its {n_labels} "
            "labels; not supported"
        )
    weight, bias = last[1].weight.detach(), last[1].bias
    return weight, weight.new_zeros(n_labels) if bias is None else bias.detach()


def write_special(ids: list[int], facts: BackboneFacts, words: WordTokenizer) -> list[str]:
    """Write special tokens that the tokenizer adds to texts as parts of a template, such as [CLS].

    Raises:
        CheckpointError: templates cannot express one of them.
    """
    written = {facts.tokens[role]: f"[{role.upper()}]" for role in ("bos", "sep", "cls") if role in facts.tokens}
    for name in map(words.name, ids):
        if name not in written:
            raise CheckpointError(
                f"model {facts.name}: adds {name} to texts, which templates cannot express; not supported"
            )
    return [written[words.name(id_)] for id_ in ids]


def largest_difference(where: object, original: str, expected: Tensor, got: Tensor) -> float:
    """Return the largest difference of a logit between a run and the original model.

    Args:
        where: the checkpoint, for messages.
        original: what computed `expected`, for messages.
        expected: float [rows, c].
        got: float [rows, c].

    Raises:
        CheckpointError: the logits differ by more than rounding.
    """
    largest = (got - expected).abs().max().item()
    if not largest <= TOLERANCE:
        raise CheckpointError(
            f"{where}: the logits of the run differ from those of {original} by up to {largest:.2g}, need at most "
            f"{TOLERANCE:g}; not supported, please report its configuration"
        )
    return largest


def versions(*others: str) -> dict[str, str]:
    """Return the versions of the packages that take part in an import."""
    return {name: version(name) for name in ("ptexport", "torch", "transformers", "tokenizers", *others)}
