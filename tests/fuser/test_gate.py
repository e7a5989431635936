"""Gates: what they are worth in training and at evaluation, and what a configuration may say."""

from __future__ import annotations

import math

import pytest
import torch

from c2c_lightning.fuser import Gate, GateConfig

LAYERS = [1, 2, 4]


def make(**config) -> Gate:
    return Gate(GateConfig(**config), LAYERS, num_kv_heads=2, seed=7)


def noise_of(gate: Gate) -> torch.Tensor:
    """The noise that a training value was made with, by inverting the sigmoid at T = 1."""
    return torch.logit(gate().double()).detach() - gate.logit.double().detach()


@pytest.mark.parametrize("noise", ["logistic", "gumbel", "none"])
def test_the_training_value_is_the_sigmoid_of_noisy_logit_over_temperature(noise):
    gate = make(noise=noise, schedule="linear", temperature=(1.0, 0.5)).train()
    with torch.no_grad():
        gate.logit.copy_(torch.tensor([-1.5, 0.2, 0.9, 0.0, 2.0, -0.3]).view(2, 3, 1))
    gate.anneal(0, 10)
    noise_GH = noise_of(gate).float()
    gate.step, gate.temperature = 0, 0.8
    torch.testing.assert_close(gate(), 1 / (1 + torch.exp(-(gate.logit + noise_GH) / 0.8)), atol=1e-5, rtol=1e-4)
    if noise == "none":
        assert noise_GH.abs().max() < 1e-5


def test_noise_is_the_same_for_the_same_step_and_another_for_another():
    gate, twin = make().train(), make().train()
    other_seed = Gate(GateConfig(), LAYERS, 2, seed=8).train()
    gate.anneal(5, 10)
    first = gate()
    gate.anneal(6, 10)
    second = gate()
    torch.manual_seed(123)
    twin.anneal(5, 10)
    other_seed.anneal(5, 10)
    assert torch.equal(first, twin())
    assert torch.equal(twin(), twin())
    assert not torch.equal(first, second)
    assert not torch.equal(first, other_seed())


def test_any_64_bit_seed_will_do():
    # torch.initial_seed() is one, where nobody has set a seed.
    gate = Gate(GateConfig(), LAYERS, 2, seed=2**64 - 1).train()
    assert gate().isfinite().all()


@pytest.mark.parametrize(("noise", "share"), [("logistic", 0.5), ("gumbel", 1 - math.exp(-1))])
def test_a_logit_of_0_is_open_half_the_time_with_logistic_noise_and_63_percent_with_gumbel(noise, share):
    gate = Gate(
        GateConfig(noise=noise, init=0.0, granularity="head"), list(range(100)), num_kv_heads=200, seed=1
    ).train()
    assert abs((gate() > 0.5).float().mean().item() - share) < 0.01


def test_the_sign_of_the_logit_decides_at_evaluation():
    gate = make().eval()
    with torch.no_grad():
        gate.logit.copy_(torch.tensor([-1e-6, 0.0, 1e-6, 3.0, -3.0, 5.0]).view(2, 3, 1))
    assert gate().flatten().tolist() == [0, 0, 1, 1, 0, 1]
    assert gate.active() == [(0, 2), (1, 0), (1, 2)]
    assert len(gate.train().active()) == 6


def test_a_layer_with_one_open_head_has_work_to_do():
    gate = make(granularity="head", init=-1.0).eval()
    with torch.no_grad():
        gate.logit[1, 2, 0] = 1.0
    assert gate().shape == (2, 3, 2)
    assert gate.active() == [(1, 2)]


@pytest.mark.parametrize("parts", ["both", "keys", "values"])
def test_there_is_one_gate_for_each_fused_part_layer_and_if_asked_head(parts):
    num_parts = 2 if parts == "both" else 1
    assert make(parts=parts)().shape == (num_parts, 3, 1)
    assert make(parts=parts, granularity="head")().shape == (num_parts, 3, 2)


def test_temperature_falls_as_the_schedule_says():
    exponential = GateConfig(temperature=(2.0, 0.02))
    assert [exponential.temperature_at(s, 100) for s in (0, 50, 100)] == pytest.approx([2.0, 0.2, 0.02])
    linear = GateConfig(temperature=(2.0, 1.0), schedule="linear")
    assert [linear.temperature_at(s, 4) for s in range(5)] == pytest.approx([2, 1.75, 1.5, 1.25, 1])
    constant = GateConfig(temperature=(2.0, 0.02), schedule="constant")
    assert {constant.temperature_at(s, 4) for s in range(5)} == {2.0}


def test_temperature_stays_at_its_end_after_anneal_steps():
    config = GateConfig(temperature=(1.0, 0.01), anneal_steps=10)
    assert [config.temperature_at(s, 1000) for s in (0, 5, 10, 11, 1000)] == pytest.approx([1, 0.1, 0.01, 0.01, 0.01])
    gate = Gate(config, LAYERS, 2)
    assert gate.temperature == 1.0
    gate.anneal(5, 1000)
    assert gate.temperature == pytest.approx(0.1)


def test_the_lowest_temperature_gives_no_nan_in_value_or_gradient():
    gate = make(granularity="head").train()
    gate.anneal(10, 10)
    assert gate.temperature == pytest.approx(0.001)
    gate().sum().backward()
    assert gate().isfinite().all()
    assert gate.logit.grad.isfinite().all()


@pytest.mark.parametrize("noise", ["logistic", "gumbel", "none"])
def test_the_penalty_is_its_weight_times_the_share_that_noise_would_open(noise):
    gate = Gate(GateConfig(noise=noise, init=-0.7, sparsity=0.25, granularity="head"), list(range(100)), 200).train()
    probability = 1 / (1 + math.exp(0.7))
    if noise != "none":
        probability = (gate() > 0.5).float().mean().item()
    assert gate.penalty().item() == pytest.approx(0.25 * probability, abs=0.0025)
    gate.penalty().backward()
    assert (gate.logit.grad > 0).all()


def test_no_penalty_where_none_is_asked_for_or_nothing_is_learned():
    assert make().penalty().item() == 0
    assert make(kind="open", sparsity=1.0).penalty().item() == 0


def test_gradient_reaches_learned_logits():
    gate = make().train()
    gate().sum().backward()
    assert (gate.logit.grad > 0).all()


@pytest.mark.parametrize("config", [{"kind": "open"}, {"kind": "fixed", "open_layers": [2]}])
def test_open_and_fixed_gates_have_nothing_to_train_and_no_noise(config):
    gate = make(**config).train()
    assert list(gate.parameters()) == []
    open_layers = config.get("open_layers", LAYERS)
    assert gate().flatten().tolist() == [float(layer in open_layers) for layer in LAYERS] * 2
    assert gate.active() == [(p, i) for p in (0, 1) for i, layer in enumerate(LAYERS) if layer in open_layers]
    assert "logit" in gate.state_dict()


def test_a_fixed_gate_may_leave_every_layer_closed():
    gate = make(kind="fixed", open_layers=[])
    assert gate.active() == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temperature": (1.0,)}, r"temperature is \[1.0\]"),
        ({"temperature": (1.0, 0.0)}, r"temperature is \[1.0, 0.0\]"),
        ({"temperature": (-1.0, 0.1)}, r"temperature is \[-1.0, 0.1\]"),
        ({"anneal_steps": 0}, "anneal_steps is 0"),
        ({"kind": "fixed"}, "kind is fixed and gate.open_layers is None"),
        ({"open_layers": [1]}, r"kind is learned and gate.open_layers is \[1\]"),
        ({"kind": "opened"}, "kind is 'opened': give learned, open or fixed"),
        ({"parts": "key"}, "parts is 'key': give both, keys or values"),
        ({"granularity": "channel"}, "granularity is 'channel': give layer or head"),
        ({"noise": "gauss"}, "noise is 'gauss': give logistic, gumbel or none"),
        ({"schedule": "cosine"}, "schedule is 'cosine': give exponential, linear or constant"),
    ],
)
def test_an_impossible_configuration_is_refused_by_value(config, message):
    with pytest.raises(ValueError, match=message):
        GateConfig(**config)


def test_a_fixed_gate_is_refused_layers_that_are_not_mapped():
    with pytest.raises(ValueError, match=r"open_layers has \[0, 3\], but only the receiver layers \[1, 2, 4\]"):
        make(kind="fixed", open_layers=[0, 2, 3])
