"""The Transformers model of a case, untouched or its embedding table made longer by the prompt; what it answers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.inputs import Inputs, Reader


def load_model(case: Case, dtype: torch.dtype = torch.float32) -> Any:
    """Load the model: with its language-model head for label words, without for a linear head."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    loader = AutoModelForCausalLM if case.config.causal else AutoModelForMaskedLM
    if case.config.word_ids is None:
        loader = AutoModel
    loaded: Any = loader.from_pretrained(case.config.model, config=_config(case), dtype=dtype)
    return loaded.eval().requires_grad_(False)


def load_lengthened(case: Case, dtype: torch.dtype = torch.float32) -> Any:
    """Load the model with the prompt's rows in its embedding table."""
    return lengthen(load_model(case, dtype), case)


def load_classifier(case: Case) -> Any:
    """Load it for sequence classification, its layer the label rows; None: that reads another state than the run."""
    from transformers import AutoModelForSequenceClassification

    config = _config(case)
    config.num_labels = len(case.label_weights)
    loader = AutoModelForSequenceClassification
    loaded: Any = loader.from_pretrained(case.config.model, config=config, dtype=torch.float32)
    model = lengthen(loaded.eval().requires_grad_(False), case)
    rows, bias = torch.from_numpy(case.label_weights), torch.from_numpy(case.label_bias)
    if case.config.causal and case.config.pooling == "last" and not case.label_bias.any():
        model.score.weight.copy_(rows)
    elif case.config.pooling == "pooled" and isinstance(getattr(model, "classifier", None), nn.Linear):
        model.classifier.weight.copy_(rows)
        model.classifier.bias.copy_(bias)
    else:
        return None
    model.config.pad_token_id = model.config.vocab_size  # texts of one length are not padded: no id is padding
    return model


def _config(case: Case) -> Any:
    """Read the configuration; keys and values are not kept, since each text is read once."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(case.config.model)
    config.use_cache = False
    rotary = getattr(config, "rope_parameters", None)
    if rotary and "rope_theta" in rotary:
        config.rope_theta = rotary["rope_theta"]  # where Transformers before 5 looks for it
    return config


def lengthen(model: Any, case: Case) -> Any:
    """Append the prompt's rows to a model's embedding table, in place; a head that is tied to it stays so."""
    vocab = case.config.vocab
    model.resize_token_embeddings(vocab + len(case.prompt_embeddings), mean_resizing=False)
    model.requires_grad_(False).get_input_embeddings().weight[vocab:] = torch.from_numpy(case.prompt_embeddings)
    return model


def checkpoint_files(model: Path) -> list[Path]:
    """The files of a backbone that Transformers reads."""
    return sorted(path for path in model.iterdir() if path.suffix in (".json", ".safetensors", ".txt"))


def tensors(inputs: Inputs, texts: list[str], device: str, start: int = 0) -> dict[str, Tensor]:
    """Tokenise texts and leave out the first ids of each; int64 [b, s] each."""
    return {name: torch.from_numpy(ids[:, start:]).to(device) for name, ids in inputs(texts).items()}


def read(reader: Reader, output: Any, input_ids: Tensor) -> list[list[float]]:
    """Read a model's output; ids as `Reader.pick` takes them."""
    return reader.of_labels(reader.pick(output[reader.output], input_ids).float().cpu().numpy())
