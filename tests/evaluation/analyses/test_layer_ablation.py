"""Fusion without a layer, and with only one."""

from __future__ import annotations

import pytest
import torch

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses import LayerAblation
from c2c_lightning.evaluation.analyses.layer_ablation import OnlyLayer, WithoutLayer, closed_gates
from c2c_lightning.evaluation.methods import C2C, Receiver
from c2c_lightning.fuser import GateConfig
from tests.evaluation.asking import prefilled
from tests.models import tiny


def test_only_one_layer_is_what_a_gate_fixed_to_it_gives(communicator, questions):
    for layer in communicator.fusers.fused_layers:
        fixed = tiny.communicator("qwen3", "qwen2", gate=GateConfig(kind="fixed", open_layers=[layer]))
        expected = prefilled(C2C(), fixed, questions)
        assert torch.equal(prefilled(OnlyLayer(layer), communicator, questions), expected)
        assert not torch.equal(prefilled(C2C(), communicator, questions), expected)


def test_without_a_layer_its_cache_is_the_receivers_and_the_others_are_fused(communicator, questions):
    own, fused = prefilled(Receiver(), communicator, questions), prefilled(C2C(), communicator, questions)
    without = prefilled(WithoutLayer(2), communicator, questions)
    assert torch.equal(without[:, 2], own[:, 2])
    torch.testing.assert_close(without[:, [0, 1, 3]], fused[:, [0, 1, 3]])
    assert not torch.equal(without[:, 3], own[:, 3])


def test_gates_are_as_they_were_afterwards_even_after_an_exception(questions):
    communicator = tiny.communicator("qwen3", "qwen2", "llama", gate=GateConfig(granularity="head"))
    with torch.no_grad():
        for gate in communicator.fusers.gates:
            gate.logit.uniform_(0.1, 1)
    before = [gate.logit.clone() for gate in communicator.fusers.gates]
    with closed_gates(communicator.fusers, {2, 3}):
        assert communicator.fusers.gates[1].active() == []
        assert {
            communicator.fusers.gates[0].receiver_layers[layer] for _, layer in communicator.fusers.gates[0].active()
        } == {1}
    with pytest.raises(ZeroDivisionError), closed_gates(communicator.fusers, {2}):
        raise ZeroDivisionError
    prefilled(OnlyLayer(3), communicator, questions)
    assert all(torch.equal(gate.logit, kept) for gate, kept in zip(communicator.fusers.gates, before))


def test_a_layer_that_is_not_fused_is_refused(communicator):
    with pytest.raises(UserError, match=r"\[0\], but the fuser's receiver layers are \[1, 2, 3\]"):
        LayerAblation([0, 2]).methods(communicator)
