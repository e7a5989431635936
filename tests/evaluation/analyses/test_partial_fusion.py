"""Fusion without a layer, and with only one."""

from __future__ import annotations

import pytest
import torch

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses import LayerAblation
from c2c_lightning.evaluation.analyses.partial_fusion import OnlyLayer, PartlyFused, WithoutLayer, closed_gates
from c2c_lightning.evaluation.asking.methods import C2C, Receiver
from c2c_lightning.fuser import GateConfig
from c2c_lightning.models.alignment import UNALIGNED
from tests.evaluation.asking import ask, part_of, prefilled
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


@pytest.mark.parametrize("end", ["front", "back"])
def test_all_of_the_prompt_fused_is_c2c_and_nothing_is_the_receiver(communicator, questions, end):
    for percentage, method in ((100, C2C()), (0, Receiver())):
        partly = prefilled(PartlyFused(end, percentage), communicator, questions)
        assert torch.equal(partly, prefilled(method, communicator, questions))


def test_half_of_every_prompts_own_tokens_is_fused(communicator, questions):
    own, fused = prefilled(Receiver(), communicator, questions), prefilled(C2C(), communicator, questions)
    before = questions.read(communicator.models).batch.sharers[0].positions.clone()
    front, back = (prefilled(PartlyFused(end, 50), communicator, questions) for end in ("front", "back"))
    assert torch.equal(questions.read(communicator.models).batch.sharers[0].positions, before)
    for row, length in enumerate(questions.read(communicator.models).batch.prompt_mask[:, :-1].sum(1).tolist()):
        half = (length + 1) // 2
        start = own.shape[4] - length
        # Fewer tokens go through the same matmuls, which may round otherwise; what is not fused is as it was.
        torch.testing.assert_close(front[:, :, row, :, start : start + half], fused[:, :, row, :, start : start + half])
        assert torch.equal(front[:, :, row, :, start + half :], own[:, :, row, :, start + half :])
        torch.testing.assert_close(back[:, :, row, :, -half:], fused[:, :, row, :, -half:])
        assert torch.equal(back[:, :, row, :, start:-half], own[:, :, row, :, start:-half])


def test_only_sharer_tokens_opposite_a_fused_token_count_as_handed_over(communicator, questions):
    fuser, sharer = communicator.fusers[0], communicator.models.sharers[0]
    per_token = len(fuser.gate.active()) * fuser.sharer.features * sharer.dtype.itemsize
    halves = ask(PartlyFused("front", 50), communicator, questions)
    for i, (half, nothing) in enumerate(zip(halves, ask(PartlyFused("front", 0), communicator, questions))):
        positions = part_of(questions, [i]).read(communicator.models).batch.sharers[0].positions[0].tolist()
        heard = set(positions[: (len(positions) + 1) // 2]) - {UNALIGNED}
        assert half.handed_over == per_token * len(heard) > 0
        assert nothing.handed_over == 0
