"""The loss, whom it trains, and what it is when nothing is fused: for every model family."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from c2c_lightning.fuser import GateConfig
from c2c_lightning.models import Batch, collate
from c2c_lightning.models.cache import prefill
from tests.models import tiny

CLOSED = GateConfig(kind="fixed", open_layers=[])


def with_answers(communicator, conversations=tiny.CONVERSATIONS, answers=tiny.ANSWERS) -> Batch:
    aligner = communicator.models.aligner
    prompts = [aligner.prompt(messages) for messages in conversations]
    responses = [
        aligner.response_ids([*messages, {"role": "assistant", "content": answer}], prompt)
        for messages, prompt, answer in zip(conversations, prompts, answers)
    ]
    return collate(prompts, responses, aligner.pad_ids)


def transformers_loss(model, batch: Batch) -> torch.Tensor:
    """What transformers makes of the same tokens as a plain labelled batch: a mean over supervised tokens."""
    ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)
    mask = torch.cat([batch.prompt_mask, batch.response_mask], dim=1)
    labels = torch.cat([torch.full_like(batch.prompt_ids, -100), batch.response_ids], dim=1)
    labels[:, batch.prompt_ids.shape[1] :][batch.response_mask == 0] = -100
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


@pytest.mark.parametrize(("receiver", "sharer"), tiny.PAIRS)
def test_the_loss_trains_the_fuser_and_nothing_else(receiver, sharer):
    communicator = tiny.communicator(receiver, sharer, gate=GateConfig()).train()
    frozen = {n: p.clone() for n, p in communicator.named_parameters() if not n.startswith("fusers")}
    trained = {n: p.detach().clone() for n, p in communicator.named_parameters() if n.startswith("fusers")}
    optimizer = torch.optim.SGD([p for p in communicator.parameters() if p.requires_grad], lr=0.1)
    loss, count = communicator(with_answers(communicator))
    assert loss.isfinite()
    assert count > 0
    loss.backward()
    optimizer.step()
    for name, parameter in communicator.named_parameters():
        if name in frozen:
            assert parameter.grad is None
            assert torch.equal(parameter, frozen[name])
        else:
            assert parameter.grad.abs().sum() > 0, name
            assert not torch.equal(parameter, trained[name])
    assert not any(
        m.training for model in (communicator.models.receiver, *communicator.models.sharers) for m in model.modules()
    )
    assert all(m.training for m in communicator.fusers.modules())


@pytest.mark.parametrize("receiver", tiny.FAMILIES)
@torch.no_grad()
def test_with_closed_gates_the_loss_is_what_transformers_gives_for_the_receiver_alone(receiver):
    communicator = tiny.communicator(receiver, "qwen2", gate=CLOSED)
    batch = with_answers(communicator)
    loss, count = communicator(batch)
    assert abs(loss / count - transformers_loss(tiny.model(receiver), batch)) <= 1e-5
    alone = [with_answers(communicator, [c], [a]) for c, a in zip(tiny.CONVERSATIONS, tiny.ANSWERS)]
    one_by_one = [communicator(one) for one in alone]
    for one, (one_loss, one_count) in zip(alone, one_by_one):
        assert abs(one_loss / one_count - transformers_loss(tiny.model(receiver), one)) <= 1e-5
    assert abs(sum(one_loss for one_loss, _ in one_by_one) - loss) / count <= 1e-5


@pytest.mark.parametrize(("receiver", "sharer"), tiny.PAIRS)
@torch.no_grad()
def test_a_fused_loss_is_the_same_in_a_batch_as_one_by_one(receiver, sharer):
    communicator = tiny.communicator(receiver, sharer)
    loss, count = communicator(with_answers(communicator))
    alone = [with_answers(communicator, [c], [a]) for c, a in zip(tiny.CONVERSATIONS, tiny.ANSWERS)]
    one_by_one = torch.stack([communicator(one)[0] for one in alone]).sum()
    assert abs(loss - one_by_one) / count <= 2e-5
    assert abs(loss - communicator(with_answers(communicator), fuse=False)[0]) / count > 1e-3


@torch.no_grad()
def test_learned_gates_that_are_closed_leave_the_loss_as_it_is_to_the_bit():
    communicator = tiny.communicator("llama", "qwen3", gate=GateConfig(init=-1.0))
    batch = with_answers(communicator)
    assert torch.equal(communicator(batch)[0], communicator(batch, fuse=False)[0])


@torch.no_grad()
def test_only_the_layers_that_are_fused_are_changed_in_the_cache():
    communicator = tiny.communicator(
        "qwen3", "llama", layers=[1, 3], layer_map="depth", gate=GateConfig(kind="open", parts="values")
    )
    batch = with_answers(communicator)
    own, fused = communicator.prefill(batch, fuse=False), communicator.prefill(batch)
    for i, (before, after) in enumerate(zip(own.layers, fused.layers)):
        assert torch.equal(before.keys, after.keys)
        assert torch.equal(before.values, after.values) == (i not in (1, 3))


@torch.no_grad()
def test_a_row_with_nothing_to_supervise_adds_nothing_to_the_loss():
    communicator = tiny.communicator("llama", "qwen2")
    prompts = [communicator.models.aligner.prompt(messages) for messages in tiny.CONVERSATIONS[:2]]
    both = collate(prompts, [[5, 6], []], communicator.models.aligner.pad_ids)
    one = collate(prompts[:1], [[5, 6]], communicator.models.aligner.pad_ids)
    loss, count = communicator(both)
    assert count == 2
    torch.testing.assert_close(loss, communicator(one)[0])
    nothing, none = communicator(collate(prompts, [[], []], communicator.models.aligner.pad_ids))
    assert (nothing.item(), none.item()) == (0, 0)


def test_a_batch_with_nothing_to_supervise_still_takes_part_in_the_step():
    communicator = tiny.communicator("llama", "qwen2").train()
    prompts = [communicator.models.aligner.prompt(tiny.CONVERSATIONS[0])]
    communicator(collate(prompts, [[]], communicator.models.aligner.pad_ids))[0].backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in communicator.fusers.parameters())


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_prefill_computes_no_logits_and_the_loss_those_of_supervised_positions_only(family):
    communicator = tiny.communicator(family, "qwen3" if family == "qwen2" else "qwen2")
    seen, handles = {}, []
    for name, model in (("receiver", communicator.models.receiver), ("sharer", communicator.models.sharers[0])):
        # Forward hooks run after the pre-hooks that pick positions: they see what is really computed.
        handles.append(
            model.get_output_embeddings().register_forward_hook(
                lambda _module, inputs, _out, name=name: seen.setdefault(name, []).append(inputs[0].shape[:-1].numel())
            )
        )
    try:
        _, count = communicator(with_answers(communicator))
    finally:
        for handle in handles:
            handle.remove()
    assert count > 10
    assert seen == {"receiver": [0, int(count)], "sharer": [0]}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_prefill_keeps_every_tokens_keys_and_values_also_behind_the_sliding_window(family):
    prompt = tiny.communicator(family, "qwen2").models.aligner.prompt(tiny.CONVERSATIONS[1])
    ids = torch.tensor([prompt.receiver_ids])
    assert ids.shape[1] > 2 * tiny.WINDOW
    ours = prefill(tiny.model(family), ids, torch.ones_like(ids))
    theirs = DynamicCache()
    tiny.model(family)(input_ids=ids, past_key_values=theirs, use_cache=True)
    for mine, expected in zip(ours.layers, theirs.layers):
        assert mine.keys.shape[2] == ids.shape[1]
        torch.testing.assert_close(mine.keys, expected.keys)
        torch.testing.assert_close(mine.values, expected.values)


def test_a_bf16_pair_is_trained_through_fp32_fusers():
    communicator = tiny.communicator("qwen3", "llama").train()
    exact, count = communicator(with_answers(communicator))
    models = [tiny.build(family).bfloat16() for family in ("qwen3", "llama")]
    communicator.models.receiver, communicator.models.sharers[0] = models
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = communicator(with_answers(communicator))
    assert abs(loss - exact) / count < 0.5
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in communicator.fusers.parameters())
