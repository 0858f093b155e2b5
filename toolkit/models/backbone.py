"""A Hugging Face folder -> a frozen language model and the facts about it.

Unsupported models are rejected by name: a model that loads, but uses positions, masks or past keys and values
differently, would give wrong logits without an error.
"""

import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from optimum.exporters.tasks import TasksManager
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ptexport.runtime.bundle.manifest import Pooling
from ptexport.runtime.errors import ModelError, reason
from ptexport.toolkit.methods import Head
from ptexport.toolkit.models.checkpoint import Checkpoint
from ptexport.toolkit.models.classifier import PromptClassifier
from ptexport.toolkit.models.facts import BackboneFacts, sha256_text
from ptexport.toolkit.models.supported import check_supported, longest_row

_N_PROBED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A frozen language model, in evaluation mode and fp32.

    Attributes:
        model: the model: with its language-model head for label words; without a head for a linear one, and for one
            after BERT's pooler; else a classifier without its last linear layer.
        head: the head it was loaded for.
        tokenizer_json: its tokenizer.
        facts: facts about it.
        commit: commit on the hub, to load the same model again; None for a folder or alias.
    """

    model: PreTrainedModel
    head: Head
    tokenizer_json: str
    facts: BackboneFacts
    commit: str | None = None

    @property
    def own_pooling(self) -> Pooling:
        """The pooling of the model's own classifier."""
        if self.facts.causal:
            return "last"
        return "pooled-mean" if getattr(self.model.config, "classifier_pooling", "cls") == "mean" else "pooled"

    def classifier(self, pooling: Pooling) -> PromptClassifier:
        """Create the module that is trained and traced."""
        return PromptClassifier(self.model, pooling).eval()

    def label_weights(self, word_ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Average the rows of the head over the words of each label: weights, float [c, h], and biases, float [c]."""
        projection = self.model.get_output_embeddings()
        bias = getattr(projection, "bias", None)
        ids = torch.tensor(list(itertools.chain(*word_ids)), device=projection.weight.device)
        starts = torch.tensor([0, *itertools.accumulate(map(len, word_ids))][:-1], device=ids.device)

        def mean(table: torch.Tensor) -> torch.Tensor:
            return functional.embedding_bag(ids, table, starts, mode="mean")

        weights = mean(projection.weight)
        return weights, weights.new_zeros(len(weights)) if bias is None else mean(bias[:, None])[:, 0]


def load_backbone(checkpoint: Checkpoint, head: Head) -> Backbone:
    """Load and freeze a backbone.

    Raises:
        ModelError: Transformers cannot load it, a weight that the method uses is missing, or its architecture is not
            supported.
    """
    where = f"model {checkpoint.name}"
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
        causal = _is_causal(config, where)
        if causal and head == "pooled":  # its classifier is one linear layer
            head = "linear"
        loader = TasksManager.get_model_class_for_task(_task(head, causal=causal), framework="pt")
        # No pickle: a checkpoint without safetensors is rejected.
        model, loading = loader.from_pretrained(
            checkpoint.path,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as e:
        raise ModelError(f"{where}: Transformers cannot load it ({reason(e)}); check the files") from e
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(
            f"{where}: has no fast tokenizer (tokenizer.json), which a bundle needs; convert its tokenizer first"
        )
    missing = loading["missing_keys"]
    if head == "pooled":
        model, missing = _without_last_layer(model, missing)
    check_supported(model, where)
    _check_missing(model, missing, head, where)
    model.requires_grad_(False).eval()
    tokenizer_json: str = tokenizer.backend_tokenizer.to_str()
    facts = _facts(model, tokenizer, tokenizer_json, checkpoint, causal=causal, missing=missing)
    commit = checkpoint.revision if checkpoint.from_hub else None
    backbone = Backbone(model=model, head=head, tokenizer_json=tokenizer_json, facts=facts, commit=commit)
    _check_forward_pass(backbone, head, where)
    return backbone


def _is_causal(config: Any, where: str) -> bool:
    if config.is_encoder_decoder:
        raise ModelError(
            f"{where}: {config.model_type} is an encoder-decoder; not supported, use a causal or masked model"
        )
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return False
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return True
    raise ModelError(f"{where}: {config.model_type} is neither a causal nor a masked language model; not supported")


def _task(head: Head, *, causal: bool) -> str:
    """Return the name of a task in Optimum, whose model class has the layers that a head needs."""
    if head == "words":
        return "text-generation" if causal else "fill-mask"
    return "feature-extraction" if head == "linear" else "text-classification"


def last_layer(model: PreTrainedModel) -> tuple[str, nn.Linear] | None:
    """Find the layer that computes the logits of a classifier: the last linear layer outside its base model."""
    of_base = {id(module) for module in model.base_model.modules()}
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) not in of_base]
    return linear[-1] if linear else None


def _without_last_layer(model: PreTrainedModel, missing: set[str]) -> tuple[PreTrainedModel, set[str]]:
    """Return a classifier without its last linear layer, and the missing weights by their names there.

    That is the base model, as others load it, if all other layers are in its pooler (BERT, ALBERT).
    """
    last = last_layer(model)
    if last is not None:
        model.set_submodule(last[0], nn.Identity())
    base = model.base_model
    alone = len(list(model.parameters())) == len(list(base.parameters()))
    if not alone or getattr(base, "pooler", None) is None:
        return model, missing
    return base, {name.removeprefix(f"{model.base_model_prefix}.") for name in missing}


def _output(head: Head, output: Any) -> torch.Tensor:
    """Select the output of a model that its head is about."""
    names = {"words": ["logits"], "linear": ["last_hidden_state"], "pooled": ["logits", "pooler_output"]}[head]
    found: torch.Tensor = next(output[name] for name in names if name in output)
    return found


def _check_missing(model: PreTrainedModel, missing: set[str], head: Head, where: str) -> None:
    """Raise ModelError if missing weights, which Transformers fills at random, affect the output (get a gradient)."""
    if not missing:
        return
    _output(head, model(input_ids=torch.tensor([[0]]))).sum().backward()  # type: ignore[no-untyped-call]
    used = sorted(name for name, weight in model.named_parameters() if weight.grad is not None and name in missing)
    model.zero_grad(set_to_none=True)
    if used:
        advice = "use a method with a linear head" if head == "words" else "use another checkpoint"
        raise ModelError(f"{where}: the checkpoint lacks {', '.join(used)}, which the method uses; {advice}")


@torch.no_grad()
def _check_forward_pass(backbone: Backbone, head: Head, where: str) -> None:
    """Raise ModelError if a few tokens give other logits through `PromptClassifier` than through the model itself.

    Settings do not show everything, for example a head that is not last, visible padding, or keys that are not cached.
    """
    model, facts = backbone.model, backbone.facts
    ids = torch.arange(facts.vocab // 2, facts.vocab // 2 + _N_PROBED)  # in the middle, where no special tokens are
    n_folded = _N_PROBED // 2 if facts.causal else 0
    rest = ids[None, n_folded:]
    padded, mask = (torch.cat([torch.zeros_like(rest), part], dim=1) for part in (rest, torch.ones_like(rest)))
    prompt_embeddings = torch.zeros(1, facts.embedding_width)
    try:
        output = model(input_ids=ids[None])
        classifier = backbone.classifier(backbone.own_pooling if head == "pooled" else "last")
        prefix_kv = classifier.prefix_kv(ids[:n_folded].tolist(), prompt_embeddings) if facts.causal else None
        read = _output(head, output)[0]
        if head == "words":
            expected = read[-1, ids]
            weights, bias = backbone.label_weights([[id_] for id_ in ids.tolist()])
        else:
            expected = read if head == "pooled" else read[-1]
            weights, bias = torch.eye(len(expected)), torch.zeros(len(expected))
        got = classifier(padded, mask, prompt_embeddings, weights, bias, prefix_kv)[0]
    except ModelError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as e:
        raise ModelError(f"{where}: {facts.model_type} cannot be called as needed ({reason(e)}); not supported") from e
    if not torch.allclose(got, expected, rtol=1e-3, atol=1e-3):
        difference = (got - expected).abs().max().item()
        raise ModelError(
            f"{where}: {facts.model_type} gives logits that differ by {difference:.2g} with embeddings, positions and "
            "a mask instead of ids; not supported"
        )


def _facts(
    model: PreTrainedModel,
    tokenizer: Any,
    tokenizer_json: str,
    checkpoint: Checkpoint,
    *,
    causal: bool,
    missing: set[str],
) -> BackboneFacts:
    table: nn.Embedding = model.get_input_embeddings()
    roles = ("cls", "sep", "bos", "mask", "pad", "unk")
    tokens = {role: getattr(tokenizer, f"{role}_token") for role in roles}
    # Padding is masked, so any token works; Transformers needs one.
    tokens["pad"] = tokens["pad"] or tokenizer.eos_token or tokens["unk"] or tokenizer.convert_ids_to_tokens(0)
    probe = PromptClassifier(model, "last")
    return BackboneFacts(
        name=checkpoint.name,
        revision=checkpoint.revision,
        licence=checkpoint.licence,
        fingerprint=_fingerprint(model, missing),
        config_sha256=_config_sha256(model.config),
        tokenizer_sha256=sha256_text(tokenizer_json),
        model_type=model.config.model_type,
        causal=causal,
        vocab=table.num_embeddings,
        embedding_width=table.embedding_dim,
        max_positions=longest_row(model.config, probe.first_position),
        token_types=probe.token_types,
        tokens={role: token for role, token in tokens.items() if token is not None},
    )


def _fingerprint(model: nn.Module, missing: set[str]) -> str:
    """Return the sha256 over names, shapes and bytes of the weights (tied ones once), in a fixed order.

    Missing weights, such as those of an unused pooler, are random and left out.
    """
    digest = hashlib.sha256()
    for name, weight in sorted((name, w) for name, w in model.named_parameters() if name not in missing):
        digest.update(f"{name} {list(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().contiguous().numpy().data)
    return digest.hexdigest()


def _config_sha256(config: Any) -> str:
    """Return the sha256 over settings that change the output (rotary base, epsilon, heads); not paths or versions."""
    ignored = {"_name_or_path", "architectures", "dtype", "transformers_version"}
    record = {name: value for name, value in config.to_diff_dict().items() if name not in ignored}
    return sha256_text(json.dumps(record, sort_keys=True, default=str))
