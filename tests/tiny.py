"""Tiny random models with tokenizers built in code, and short trainings on them.

Weights start with standard deviation 0.2: the usual 0.02 makes logits so small that errors hide in them.
"""

import shutil
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from ptexport.toolkit.folders import new_folder
from ptexport.toolkit.plan import TrainConfig
from ptexport.toolkit.run import FILES, Run, TrainSettings
from ptexport.toolkit.train import train

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

    def warning(self, message: str) -> None:
        pass

    def stage(self, name: str) -> None:
        pass

    def rows(self, done: int, total: int) -> None:
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
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.add_special_tokens(["<mask>", "<extra>"])
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


def save_llama(path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = byte_level_bpe()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size() + 4,  # rows that no token has, as real checkpoints do
        **SIZES,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
    return path


def save_mistral(path: Path, llama: Path) -> Path:
    """Layers that see 24 tokens back; the tokenizer is the other model's."""
    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=Tokenizer.from_file(str(llama / "tokenizer.json")).get_vocab_size(),
        **SIZES,
        num_key_value_heads=2,
        max_position_embeddings=128,
        sliding_window=24,
        initializer_range=0.2,
    )
    MistralForCausalLM(config).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama / name, path)
    return path


def save_bert(path: Path) -> Path:
    torch.manual_seed(1)
    tokenizer = word_piece()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        **SIZES,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    model = BertForMaskedLM(config)
    torch.nn.init.normal_(model.cls.predictions.bias, std=0.2)
    model.save_pretrained(path)
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **special
    ).save_pretrained(path)
    return path


def save_roberta(path: Path) -> Path:
    """Positions start after the padding index, and text tokens hold their space."""
    torch.manual_seed(2)
    tokenizer = byte_level_bpe()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        **SIZES,
        max_position_embeddings=66,
        type_vocab_size=1,
        initializer_range=0.2,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    RobertaForMaskedLM(config).save_pretrained(path)
    special = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", **special
    ).save_pretrained(path)
    return path


def train_tiny(model: Path, rows: Path, template: str, folder: Path, **changes: object) -> Path:
    """Train for one epoch, enough for weights that mean nothing in particular."""
    settings = TrainSettings(lr=1e-2, epochs=1, batch_size=8)
    options = {"labels": LABELS, "max_length": 48, "settings": settings, **changes}
    run = train(TrainConfig(model=str(model), data=str(rows), template=template, **options), Quiet())  # type: ignore[arg-type]
    with new_folder(folder, files=FILES) as new:
        run.write(new)
    assert Run.read(folder).config == run.config
    return folder
