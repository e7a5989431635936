"""Fusion of a part of the prompt."""

from __future__ import annotations

import pytest
import torch

from c2c_lightning.evaluation.analyses.fused_fraction import PartlyFused
from c2c_lightning.evaluation.methods import C2C, Receiver
from c2c_lightning.models.alignment import UNALIGNED
from tests.evaluation.asking import ask, part_of, prefilled


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
