"""Which models can be fused, what shape their cache has, and what is said of those that cannot."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from c2c_lightning.models.loading import kv_shape, load_model, load_tokenizer, locate
from tests.models import tiny

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}


def real_shapes(model) -> set[tuple[int, ...]]:
    cache = DynamicCache()
    model(input_ids=torch.arange(3, 8)[None], past_key_values=cache, use_cache=True)
    return {(len(cache.layers), t.shape[1], t.shape[3]) for layer in cache.layers for t in (layer.keys, layer.values)}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_shape_is_that_of_the_models_real_cache(family):
    shape = kv_shape(tiny.model(family).config)
    assert real_shapes(tiny.model(family)) == {(shape.num_layers, shape.num_kv_heads, shape.head_dim)}


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}),
        ("falcon", {**SMALL, "multi_query": True}),
        ("falcon", {**SMALL, "multi_query": False}),
        ("falcon", {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2}),
        ("gpt_bigcode", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}),
        ("phi3", {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0}),
        ("gemma2", {**SMALL, "num_key_value_heads": 2, "head_dim": 6}),
        ("qwen3_moe", {**SMALL, "num_key_value_heads": 2, "head_dim": 12, "num_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_other_models_caches_have_the_shape_that_is_said(model_type, sizes):
    config = AutoConfig.for_model(model_type, **sizes)
    shape = kv_shape(config)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert real_shapes(model) == {(shape.num_layers, shape.num_kv_heads, shape.head_dim)}


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("mamba", "state-space or linear-attention"),
        ("mamba2", "state-space or linear-attention"),
        ("falcon_mamba", "state-space or linear-attention"),
        ("jamba", "state-space or linear-attention"),
        ("bamba", "state-space or linear-attention"),
        ("zamba2", "state-space or linear-attention"),
        ("recurrent_gemma", "state-space or linear-attention"),
        ("qwen3_next", "state-space or linear-attention"),
        ("deepseek_v3", "multi-head latent attention"),
        ("minicpm3", "multi-head latent attention"),
        ("t5", "encoder-decoder"),
        ("bart", "encoder-decoder"),
        ("rwkv", "no attention"),
        ("gemma3n", "share another layer's cache"),
        ("gemma4", "its layers differ in head_dim"),
        ("mimo_v2_flash", "its keys have head_dim 192 and its values 128"),
    ],
)
def test_a_model_that_cannot_be_fused_is_refused_by_name_with_the_reason(model_type, reason):
    config = AutoConfig.for_model(model_type)
    config.name_or_path = "some/model"
    with pytest.raises(ValueError, match=rf"'some/model' \({model_type}\) cannot be fused: .*{reason}"):
        kv_shape(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder."""
    return tiny.save("llama", tmp_path_factory.mktemp("llama"))


def test_a_model_is_loaded_frozen_and_under_the_name_it_was_given(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    name = f"./{folder.name}"
    model = load_model(name)
    assert model.name_or_path == name
    assert not model.training
    assert load_tokenizer(name).chat_template == tiny.INST


def test_a_model_that_cannot_be_fused_is_refused_before_its_weights_are_read(tmp_path):
    AutoConfig.for_model("mamba", **SMALL).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}.* cannot be fused"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "nowhere", "a/b/c"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(ValueError, match=rf"model '{name}': no such folder"):
        locate(name)


def test_a_hub_id_that_cannot_be_had_is_named():
    with pytest.raises(ValueError, match=r"model 'owner/no-such-model' \(hub id\)"):
        load_tokenizer("owner/no-such-model")
    with pytest.raises(ValueError, match=r"model 'owner/no-such-model' \(hub id\)"):
        load_model("owner/no-such-model")


def test_a_model_folder_without_a_tokenizer_is_named(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"model '{tmp_path}'"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_a_chat_template_is_named_with_the_remedy(folder, tmp_path):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=rf"model '{tmp_path}' has no chat template.*Give one as model\.chat\.receiver"
    ):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_of_turn(folder, tmp_path):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "</s>"


def test_a_tokenizer_without_an_end_of_turn_is_named(folder, tmp_path):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"model '{tmp_path}'.*eos_token"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_model_folder_with_a_file_missing_or_damaged_is_named(tmp_path, file, damage):
    tiny.model("llama").save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    if damage == "damaged":
        (tmp_path / file).write_text('{"model_type": "lla')
    with pytest.raises(ValueError, match=rf"model '{tmp_path}'.*cannot read its {file}"):
        load_model(str(tmp_path))


def test_a_damaged_tokenizer_is_named(folder, tmp_path):
    load_tokenizer(str(folder)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "mo')
    with pytest.raises(ValueError, match=rf"model '{tmp_path}'"):
        load_tokenizer(str(tmp_path))
