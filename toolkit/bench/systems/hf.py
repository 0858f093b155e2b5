"""A case -> its Transformers model, untouched or with the prompt embeddings in its embedding table."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.inputs import Inputs, LabelHead

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_model(case: Case, dtype: torch.dtype = torch.float32) -> Any:
    """Load the model, with its language-model head for label words and without it for a linear head."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    loader = AutoModelForCausalLM if case.config.causal else AutoModelForMaskedLM
    if case.config.word_ids is None:
        loader = AutoModel
    loaded: Any = loader.from_pretrained(case.config.model, config=_config(case), dtype=dtype)
    return loaded.eval().requires_grad_(False)


def load_extended(case: Case, dtype: torch.dtype = torch.float32) -> Any:
    """Load the model with the prompt embeddings in its embedding table."""
    return extend_embeddings(load_model(case, dtype), case)


def load_classifier(case: Case) -> Any:
    """Load the sequence classifier with the label weights; None: it pools differently from the run."""
    from transformers import AutoModelForSequenceClassification

    config = _config(case)
    config.num_labels = len(case.label_weights)
    loader = AutoModelForSequenceClassification
    loaded: Any = loader.from_pretrained(case.config.model, config=config, dtype=torch.float32)
    model = extend_embeddings(loaded.eval().requires_grad_(False), case)
    weights, bias = torch.from_numpy(case.label_weights), torch.from_numpy(case.label_bias)
    if case.config.causal and case.config.pooling == "last" and not case.label_bias.any():
        model.score.weight.copy_(weights)
    elif case.config.pooling == "pooled" and isinstance(getattr(model, "classifier", None), nn.Linear):
        model.classifier.weight.copy_(weights)
        model.classifier.bias.copy_(bias)
    else:
        return None
    model.config.pad_token_id = (
        model.config.vocab_size
    )  # an id outside the vocabulary: texts of one length have no padding
    return model


def _config(case: Case) -> Any:
    """Read the configuration, without a KV cache."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(case.config.model)
    config.use_cache = False
    rotary = getattr(config, "rope_parameters", None)
    if rotary and "rope_theta" in rotary:
        config.rope_theta = rotary["rope_theta"]  # where Transformers 4 expects it
    return config


def extend_embeddings(model: Any, case: Case) -> Any:
    """Append the prompt embeddings to a model's embedding table, in place; a tied head stays tied."""
    vocab = case.config.vocab
    model.resize_token_embeddings(vocab + len(case.prompt_embeddings), mean_resizing=False)
    model.requires_grad_(False).get_input_embeddings().weight[vocab:] = torch.from_numpy(case.prompt_embeddings)
    return model


def checkpoint_files(model: Path) -> list[Path]:
    """List the files of a backbone that Transformers reads."""
    return sorted(path for path in model.iterdir() if path.suffix in (".json", ".safetensors", ".txt"))


def tensors(inputs: Inputs, texts: list[str], device: str, start: int = 0) -> dict[str, Tensor]:
    """Encode texts without their first `start` ids; int64 [b, s] each."""
    return {name: torch.from_numpy(ids[:, start:]).to(device) for name, ids in inputs(texts).items()}


def label_logits(head: LabelHead, output: Any, input_ids: Tensor) -> list[list[float]]:
    """Compute the labels' logits from a model's output; `input_ids` as in `LabelHead.pool`."""
    return head.label_logits(head.pool(output[head.output], input_ids).float().cpu().numpy())
