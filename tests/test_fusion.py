"""Communicators of the same models fuse as each does alone, while every model reads a batch once."""

from __future__ import annotations

from functools import partial

import torch

from c2c_lightning.communicator import Communicator
from c2c_lightning.fuser import C2CFuser, GateConfig, fuse_all
from tests.models import tiny

FAMILIES = ("qwen3", "llama", "gemma3")


def communicators() -> list[Communicator]:
    """Two sharers; other layers, maps, parts and gates; two of them with dropout."""
    first = tiny.communicator(*FAMILIES, gate=GateConfig(), layer_map="depth", seed=1)
    made = [first]
    for seed, (layers, gate, dropout) in enumerate(
        [("last:2", {"parts": "values"}, 0.0), ([0, 3], {"granularity": "head"}, 0.3), ("all", {"kind": "open"}, 0.3)]
    ):
        torch.manual_seed(seed)
        made.append(
            Communicator.fresh(
                first.models,
                fuser=partial(C2CFuser, hidden=16, dropout=dropout),
                layers=layers,
                gate=GateConfig(**gate),
            )
        )
    return [communicator.train() for communicator in made]


def test_each_has_the_cache_that_it_would_have_alone_and_draws_what_it_would_alone():
    made = communicators()
    batch = made[0].models.collate(tiny.CONVERSATIONS)
    alone = []
    for communicator in made:
        torch.manual_seed(5)
        alone.append(communicator.prefill(batch))
    torch.manual_seed(5)
    for ours, expected in zip(fuse_all([communicator.fusers for communicator in made], made[0].read(batch)), alone):
        for mine, layer in zip(ours.layers, expected.layers):
            torch.testing.assert_close(mine.keys, layer.keys, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(mine.values, layer.values, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_model_reads_a_batch_once_and_one_that_nobody_listens_to_not_at_all():
    made = communicators()
    for communicator in made[:3]:
        communicator.eval().fusers.gates[1].logit.fill_(-1.0)
    made = made[:3]
    batch = made[0].models.collate(tiny.CONVERSATIONS)
    read = []
    models = [made[0].models.receiver, *made[0].models.sharers]
    handles = [model.register_forward_hook(lambda *_, i=i: read.append(i)) for i, model in enumerate(models)]
    try:
        fuse_all([communicator.fusers for communicator in made], made[0].read(batch))
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(read) == [0, 1]


@torch.no_grad()
def test_a_cache_of_a_reading_can_be_gone_on_with_while_the_reading_stays_as_it_is():
    communicator = communicators()[0].eval()
    batch = communicator.models.collate(tiny.CONVERSATIONS)
    reading = communicator.read(batch)
    before = [layer.keys.clone() for layer in reading.receiver_cache().layers]
    first = communicator.generate_ids(reading, max_new_tokens=5, do_sample=False)
    again = communicator.generate_ids(reading, max_new_tokens=5, do_sample=False)
    assert torch.equal(first, again)
    assert torch.equal(first, communicator.generate_ids(batch, max_new_tokens=5, do_sample=False))
    after = [layer.keys for layer in reading.receiver_cache().layers]
    assert all(torch.equal(old, new) for old, new in zip(before, after))
