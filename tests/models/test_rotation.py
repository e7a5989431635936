"""Keys lose the rotation of their positions and get another, as each family of models turns them."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from c2c_lightning.errors import UserError
from c2c_lightning.models import Rotation
from c2c_lightning.models.cache import prefill, read_stack
from tests.models import tiny

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 8192,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 1024},
    **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
LONG = {"rope_type": "longrope", "original_max_position_embeddings": 64}
KINDS = ["sliding_attention", "full_attention"]
WINDOW = {"layer_types": KINDS, "sliding_window": 4}
ROTARY = {  # name: (model type, what differs from SIZES)
    "llama": ("llama", {"num_key_value_heads": 1}),
    "llama, Llama 3 scaling": ("llama", {"rope_parameters": {"rope_theta": 500_000.0, **LLAMA3}}),
    "llama, YaRN": ("llama", {"rope_parameters": {"rope_theta": 10_000.0, **YARN}}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_theta": 10_000.0, "rope_type": "linear", "factor": 4.0}}),
    "qwen3": ("qwen3", {"num_key_value_heads": 1, "head_dim": 24}),
    "mistral": ("mistral", {"num_key_value_heads": 1, "sliding_window": 4}),
    "gemma3, a base for each kind of layer": (
        "gemma3_text",
        {
            **{"num_key_value_heads": 1, "head_dim": 16, **WINDOW},
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
            },
        },
    ),
    "phi, partial": ("phi", {}),
    "gpt_neox, partial": ("gpt_neox", {}),
    "stablelm, partial": ("stablelm", {"num_key_value_heads": 1}),
    "glm, partial and interleaved": ("glm", {"num_key_value_heads": 1, "head_dim": 16}),
    "cohere, interleaved": ("cohere", {}),
    "cohere2, a layer without positions": ("cohere2", {"head_dim": 16, **WINDOW}),
    "gptj, interleaved": ("gptj", {"rotary_dim": 8}),
    "nanochat, backwards": ("nanochat", {}),
    "falcon": ("falcon", {}),
    "granite": ("granite", {}),
    "olmo2": ("olmo2", {}),
}
STRETCHED = {  # whose frequencies depend on the longest position that is read
    "phi3, LongRoPE": (
        "phi3",
        {"rope_parameters": {"rope_theta": 10_000.0, **LONG, "short_factor": [1.0] * 8, "long_factor": [5.0] * 8}},
    ),
    "llama, dynamic NTK": (
        "llama",
        {
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "dynamic", "factor": 4.0},
        },
    ),
}
UNTURNED = {
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 32}),
    "bloom, ALiBi": ("bloom", {}),
}
FAMILIES = {**ROTARY, **STRETCHED, **UNTURNED}
IDS = torch.arange(3, 33).reshape(2, 15)
MASK = torch.ones_like(IDS)
MASK[0, :4] = 0
POSITIONS = (MASK.cumsum(-1) - 1).clamp(min=0)


@cache
def build(name: str, dtype: torch.dtype = torch.float32):
    model_type, sizes = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SIZES, **sizes}), dtype=dtype)
    model.name_or_path = name
    return model.eval(), Rotation(model)


def keys(model, positions) -> torch.Tensor:
    return read_stack(prefill(model, IDS, MASK, positions), range(2))[0]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest of a layer, relative to its largest key; padding is nobody's text."""
    real = MASK.bool()[None, :, None, :, None]
    a, b = a.double() * real, b.double() * real
    return max((x - y).abs().max() / y.abs().max() for x, y in zip(a, b)).item()


@pytest.mark.parametrize("shift", [7, 4000])
@pytest.mark.parametrize("name", ROTARY)
def test_keys_of_a_text_are_the_same_wherever_it_stood_once_their_rotation_is_off(name, shift):
    model, rotation = build(name)
    here, there = keys(model, POSITIONS), keys(model, POSITIONS + shift)
    assert difference(here, there) > 0.1
    assert difference(rotation.off(here, POSITIONS), rotation.off(there, POSITIONS + shift)) < 1e-3


@pytest.mark.parametrize("shift", [7, 4000])
@pytest.mark.parametrize("name", ROTARY)
def test_keys_moved_to_new_positions_are_those_that_the_model_makes_there(name, shift):
    model, rotation = build(name)
    here, there = keys(model, POSITIONS), keys(model, POSITIONS + shift)
    moved = rotation.on(rotation.off(here, POSITIONS), POSITIONS + shift)
    assert difference(moved[:1], there[:1]) < 1e-5  # which has seen no other token
    assert difference(moved, there) < 1e-3


@pytest.mark.parametrize("name", ROTARY)
def test_keys_without_rotation_are_those_of_position_0(name):
    model, rotation = build(name)
    first = keys(model, torch.zeros_like(POSITIONS))[0]  # of the first layer, which has seen no other token
    assert difference(rotation.off(keys(model, POSITIONS), POSITIONS)[:1], first[None]) < 1e-5


def test_a_layers_rotation_is_that_of_its_own_base():
    _, rotation = build("gemma3, a base for each kind of layer")
    k = torch.randn(2, 1, 1, 5, 16)
    positions = torch.tensor([[0, 1, 50, 999, 4000]])
    turned = rotation.on(k, positions)
    for layer, (base, factor) in enumerate([(10_000, 1), (1_000_000, 8)]):
        angles = positions[0, :, None] * base ** (-torch.arange(8, dtype=torch.float64) / 8) / factor
        expected = torch.complex(*k[layer, 0, 0].double().chunk(2, -1)) * torch.polar(torch.ones(()).double(), angles)
        assert (torch.cat([expected.real, expected.imag], -1) - turned[layer, 0, 0]).abs().max() < 1e-3


@pytest.mark.parametrize("name", STRETCHED)
def test_frequencies_for_long_texts_are_undone_and_put_on_as_the_model_chooses_them(name):
    model, rotation = build(name)
    here, there = keys(model, POSITIONS)[:1], keys(model, POSITIONS + 100)[:1]
    both = [torch.cat([k, k]) for k in (here, there)]  # all layers have the same rules
    off = rotation.off(both[0], POSITIONS)
    assert difference(off, rotation.off(both[1], POSITIONS + 100)) < 1e-4
    assert difference(rotation.on(off, POSITIONS + 100), both[1]) < 1e-4
    assert difference(rotation.on(off, POSITIONS), both[0]) < 1e-4


@pytest.mark.parametrize("name", ["qwen3", "gemma3, a base for each kind of layer"])
def test_keys_in_bf16_are_moved_to_within_their_rounding(name):
    model, rotation = build(name, torch.bfloat16)
    here, there = keys(model, POSITIONS), keys(model, POSITIONS + 4000)
    moved = rotation.on(rotation.off(here, POSITIONS), POSITIONS + 4000)
    assert moved.dtype == torch.bfloat16
    assert difference(moved[:1], there[:1]) < 2e-2
    assert difference(rotation.on(rotation.off(here, POSITIONS), POSITIONS), here) < 1e-2


@pytest.mark.parametrize("name", UNTURNED)
def test_keys_that_do_not_turn_are_left_as_they_are(name):
    model, rotation = build(name)
    k = keys(model, POSITIONS)
    assert rotation.off(k, POSITIONS) is k
    assert rotation.on(k, POSITIONS + 300) is k


@pytest.mark.parametrize("name", ["llama, YaRN", "cohere2, a layer without positions"])
def test_gradients_pass_through_the_rotation_that_is_put_on(name):
    _, rotation = build(name)
    k = torch.randn(2, 2, 2, 15, 16, requires_grad=True)
    weights = torch.randn_like(k)
    (rotation.on(k, POSITIONS) * weights).sum().backward()
    assert torch.allclose(k.grad, rotation.off(weights, POSITIONS), atol=1e-5)  # a rotation's transpose is its inverse


def test_a_model_whose_positions_cannot_be_undone_is_refused_by_name():
    config = AutoConfig.for_model("hunyuan_v1_dense", **SIZES, head_dim=16, num_key_value_heads=1)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.name_or_path = "some-hunyuan"
    for layer in model.model.layers:  # it weighs features after it has turned them
        torch.nn.init.uniform_(layer.self_attn.key_layernorm.weight, 0.5, 2)
    with pytest.raises(UserError, match=r"'some-hunyuan'.* In layer .* Choose another model"):
        Rotation(model)


def test_a_model_is_left_as_it_was():
    model = tiny.build("qwen3").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    Rotation(model)
    assert [module.training for module in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_compiled_models_rotation_is_that_of_the_model():
    model = tiny.build("qwen3")
    k = torch.randn(4, 2, 2, 15, 16)
    expected = Rotation(model).off(k, POSITIONS)
    model.compile(backend="eager")
    assert torch.equal(Rotation(model).off(k, POSITIONS), expected)
