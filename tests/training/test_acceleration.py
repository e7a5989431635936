"""Compiling and recomputing change what a step costs, and not what comes out."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from c2c_lightning.errors import UserError
from c2c_lightning.fuser import C2CFuser, GateConfig
from c2c_lightning.models.batch import collate
from c2c_lightning.training.acceleration import compile_parts
from tests.models import tiny


def communicator(dropout: float = 0.0):
    made = tiny.communicator("qwen3", "qwen2", gate=GateConfig())
    fuser = made.fusers[0]
    made.fusers.add_module("0", C2CFuser(fuser.sharer, fuser.receiver, fuser.gate, hidden=16, dropout=dropout))
    return made.train()


def step(made) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Loss, gradients, and how many numbers were kept for the backward pass."""
    prompts = [made.models.aligner.prompt(messages) for messages in tiny.CONVERSATIONS]
    batch = collate(prompts, [[3, 4, 5]] * len(prompts), pad_ids=made.models.aligner.pad_ids)
    made.zero_grad()
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = made(batch)
    loss.backward()
    return loss, [parameter.grad for parameter in made.fusers.parameters()], sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recomputed_activations_give_the_same_gradients_to_the_bit_and_are_not_kept(dropout):
    torch.manual_seed(1)
    made = communicator(dropout)
    loss, gradients, kept = step(made)
    made.fusers[0].recomputes = True
    again, others, kept_less = step(made)
    assert torch.equal(again, loss)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(others, gradients, strict=True))
    assert kept_less < kept


@pytest.mark.parametrize("parts", ["fusers", "all"])
def test_compiled_parts_give_the_same_loss_and_gradients(parts):
    torch.manual_seed(1)
    made = communicator()
    made.models.receiver = tiny.build("qwen3").requires_grad_(False)
    made.models.sharers[0] = tiny.build("qwen2").requires_grad_(False)
    loss, gradients, _ = step(made)
    calls: list[str] = []
    compile_parts(made, parts, backend=partial(noted, calls))
    again, others, _ = step(made)
    assert calls
    torch.testing.assert_close(again, loss, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(others, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def noted(calls, graph, inputs):
    """A backend of torch.compile that runs what it is given as it is, and says that it was asked."""
    calls.append("compiled")
    return graph.forward


def test_an_unknown_part_is_refused():
    with pytest.raises(UserError, match=r"model\.compile is 'everything': give none, fusers, all"):
        compile_parts(communicator(), "everything")
