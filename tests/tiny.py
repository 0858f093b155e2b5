"""Tiny random models with tokenizers built in code, and short trainings on them.

Weights start with standard deviation 0.2: the usual 0.02 makes logits so small that errors hide in them.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from ptexport.runtime.bundle.measured import Parity
from ptexport.toolkit.run.config import TrainConfig, TrainSettings
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.training.inputs import read_inputs
from ptexport.toolkit.training.train import train_into

WORDS = ["the", "a", "film", "was", "great", "terrible", "good", "bad", "it", "review", "is", "and", "of", "very"]
WORDS += ["slow", "fast", "bright", "dull", "story", "Africa", "Asia", "Europe", "North", "South", "Australia", "city"]
WORDS += ["in", "on", "continent", "yes", "no", "maybe", "question", "answer"]
CORPUS = [f"{first} {second} {third}" for first in WORDS for second in WORDS for third in WORDS[:8]]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LABELS = "positive=great|good,negative=terrible|bad"
ROWS = [
    (f"the {noun} was {word}", label)
    for label, words in {
        "positive": ["bright", "fast", "very bright", "bright and fast", "very very fast"],
        "negative": ["dull", "slow", "very dull", "dull and slow", "very very slow"],
    }.items()
    for word in words
    for noun in ["film", "story", "review", "answer"]
]


class Quiet:
    """Progress that nobody watches."""

    def step(self, done: int, total: int, loss: float) -> None:
        pass

    def epoch(self, number: int, dev_accuracy: float) -> None:
        pass

    def note(self, message: str) -> None:
        pass

    def choice(self, message: str) -> None:
        pass

    def warning(self, message: str) -> None:
        pass

    def stage(self, name: str) -> None:
        pass

    def rows(self, done: int, total: int | None) -> None:
        pass


def byte_level_bpe() -> Tokenizer:
    """Like GPT-2's, RoBERTa's and SmolLM2's: a space is part of the word that follows it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def unigram() -> Tokenizer:
    """Like SentencePiece's: spaces are marked, scores choose the pieces, and tokens are added beside the vocabulary."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -5.0)]
    pieces += [(f"▁{word}", -4.0) for word in WORDS]
    pieces += [(letter, -8.0) for letter in sorted(set("".join(WORDS)) | set("?.!,"))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<extra>"])
    return tokenizer


def word_piece() -> Tokenizer:
    """Like BERT's."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = dict.fromkeys([*special, *letters, *(f"##{c}" for c in letters), *"?.!,", *(w.lower() for w in WORDS)])
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def causal_tokenizer() -> PreTrainedTokenizerFast:
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(), **special)


def bert_tokenizer() -> PreTrainedTokenizerFast:
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=word_piece(), pad_token="[PAD]", unk_token="[UNK]", **special)


def roberta_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    special = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", **special)


ROBERTA = {"max_position_embeddings": 66, "type_vocab_size": 1}  # 64 positions after the padding's index
NARROW = {"embedding_size": 16, "max_position_embeddings": 64}
GROUPED = {"num_key_value_heads": 2, "max_position_embeddings": 128}

ARCHITECTURES: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], dict[str, Any]]] = {
    "llama": (causal_tokenizer, {**GROUPED, "tie_word_embeddings": True}),
    "mistral": (causal_tokenizer, {**GROUPED, "sliding_window": 24}),
    # As published: a window that is not in use.
    "qwen2": (causal_tokenizer, {**GROUPED, "use_sliding_window": False, "sliding_window": 16}),
    "qwen3": (causal_tokenizer, {**GROUPED, "head_dim": 16}),
    "gpt2": (causal_tokenizer, {"max_position_embeddings": 128, "n_inner": 48}),
    "bert": (bert_tokenizer, {"max_position_embeddings": 64}),
    "roberta": (lambda: roberta_tokenizer(byte_level_bpe()), ROBERTA),
    "xlm-roberta": (lambda: roberta_tokenizer(unigram()), ROBERTA),
    "albert": (bert_tokenizer, NARROW),
    "distilbert": (bert_tokenizer, {"max_position_embeddings": 64, "hidden_dim": 48}),
    "electra": (bert_tokenizer, NARROW),
    # One layer that sees everything, then two that see 8 tokens either way.
    "modernbert": (bert_tokenizer, {"max_position_embeddings": 96, "num_hidden_layers": 3, "local_attention": 16}),
}
"""By Transformers' name: the tokenizer, and what its configuration has beside SIZES."""


def save_model(path: Path, architecture: str, *, like: str | None = None, auto: Any = None, **changes: Any) -> Path:
    """Write a Hugging Face folder; a tokenizer with a mask token makes it a masked model.

    Args:
        path: the folder.
        architecture: one of ARCHITECTURES, or any that Transformers has, with `like`.
        like: one of ARCHITECTURES, whose tokenizer and options it gets.
        auto: class of Transformers that makes the model; None: that of its language model.
        changes: other options.
    """
    torch.manual_seed(0)
    make_tokenizer, options = ARCHITECTURES[like or architecture]
    tokenizer = make_tokenizer()
    masked = tokenizer.mask_token is not None
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer) + (0 if masked else 4),  # rows that no token has, as real checkpoints do
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
        **{**SIZES, **options, **changes},
    )
    model = (auto or (AutoModelForMaskedLM if masked else AutoModelForCausalLM)).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if (
                parameter.ndim == 1
            ):  # biases and norms, which start as all 0 or 1, where nothing shows that they are read
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def train_tiny(model: Path, rows: Path, template: str, folder: Path, **changes: object) -> Path:
    """Train for one epoch, enough for weights that mean nothing in particular."""
    names = ("lr", "backbone_lr", "lora_rank", "balance", "accumulate", "autocast")
    given = {name: changes.pop(name) for name in names if name in changes}
    settings = TrainSettings(epochs=1, batch_size=8, **given)  # type: ignore[arg-type]
    options = {"labels": LABELS, "max_length": 48, "settings": settings, **changes}
    config = TrainConfig(model=str(model), data=str(rows), template=template, **options)  # type: ignore[arg-type]
    run = train_into(folder, read_inputs(config, Quiet()), Quiet())
    assert Run.read(folder).config == run.config
    return folder


def sample(values: Iterable[Any], *kept: Any) -> list[Any]:
    """Parametrize with all values in `make soak`, and with those kept in `make test`; tuples are several arguments."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=() if value in kept else pytest.mark.soak
        )
        for value in values
    ]


def worst(parity: Parity) -> float:
    measured = [result.max_abs_diff for result in (parity.alone, parity.padded_right, parity.padded_left)]
    return max(*measured, parity.among_neighbours or 0.0, parity.all_lengths or 0.0)
