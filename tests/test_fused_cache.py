"""The fused cache, put together by hand: each model alone on one unpadded prompt, layer by layer."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from c2c_lightning.fuser import GateConfig
from c2c_lightning.models import collate
from c2c_lightning.models.alignment import UNALIGNED
from tests.models import tiny

MAPS = {
    "terminal": lambda receiver, sharer: {receiver - k: sharer - k for k in range(1, min(receiver, sharer) + 1)},
    "depth": lambda receiver, sharer: {r: round(r * (sharer - 1) / (receiver - 1)) for r in range(receiver)},
}


def own_cache(family: str, ids: list[int]) -> DynamicCache:
    cache = DynamicCache()
    tiny.model(family)(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
    return cache


def by_hand(communicator, families, prompt, maps, fuse_parts=(0, 1)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """receiver + the sum of all sharers' gated residuals, for every layer of one prompt."""
    receiver = own_cache(families[0], prompt.receiver_ids[:-1])
    own = [[layer.keys.clone(), layer.values.clone()] for layer in receiver.layers]
    fused = [[keys.clone(), values.clone()] for keys, values in own]
    for i, (family, mapped) in enumerate(zip(families[1:], maps)):
        sharer = own_cache(family, prompt.sharer_ids[i])
        positions = torch.from_numpy(prompt.positions[i])
        pairs = sorted(mapped.items())
        ours = torch.stack([torch.stack([own[r][part] for r, _ in pairs]) for part in (0, 1)])
        theirs = torch.stack(
            [
                torch.stack([getattr(sharer.layers[s], part)[:, :, positions.clamp(min=0)] for _, s in pairs])
                for part in ("keys", "values")
            ]
        )
        residual = communicator.fusers[i](theirs, ours) - ours
        residual[..., positions == UNALIGNED, :] = 0
        for place, (r, _) in enumerate(pairs):
            for part in fuse_parts:
                fused[r][part] += residual[part, place]
    return fused


def assert_fused(communicator, families, maps, **kwargs) -> None:
    prompts = [communicator.models.aligner.prompt(messages) for messages in tiny.CONVERSATIONS]
    cache = communicator.prefill(collate(prompts, pad_ids=communicator.models.aligner.pad_ids))
    for row, prompt in enumerate(prompts):
        num_real = len(prompt.receiver_ids) - 1
        for layer, (keys, values) in zip(cache.layers, by_hand(communicator, families, prompt, maps, **kwargs)):
            torch.testing.assert_close(layer.keys[row, :, -num_real:], keys[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(layer.values[row, :, -num_real:], values[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer_map", MAPS)
@pytest.mark.parametrize(("receiver", "sharer"), tiny.PAIRS)
@torch.no_grad()
def test_each_mapped_layer_is_fused_with_the_sharer_layer_and_tokens_opposite(receiver, sharer, layer_map):
    communicator = tiny.communicator(receiver, sharer, layer_map=layer_map)
    depths = [tiny.model(family).config.num_hidden_layers for family in (receiver, sharer)]
    assert_fused(communicator, (receiver, sharer), [MAPS[layer_map](*depths)])


@torch.no_grad()
def test_an_explicit_map_and_a_choice_of_layers_leave_the_others_alone():
    communicator = tiny.communicator("qwen3", "gemma3", layer_map={0: 3, 2: 1, 3: 1}, layers=[0, 3])
    assert communicator.fusers.layer_maps == [{0: 3, 3: 1}]
    assert_fused(communicator, ("qwen3", "gemma3"), [{0: 3, 3: 1}])


@pytest.mark.parametrize("layer_map", MAPS)
@torch.no_grad()
def test_several_sharers_updates_add_up_each_read_off_the_receivers_own_cache(layer_map):
    families = ("qwen3", "llama", "gemma3", "phi")  # 4 layers, fed by 2, 4 and 3
    communicator = tiny.communicator(*families, layer_map=layer_map)
    maps = [MAPS[layer_map](4, depth) for depth in (2, 4, 3)]
    assert communicator.fusers.layer_maps == maps
    assert len({len(mapped) for mapped in maps}) == (3 if layer_map == "terminal" else 1)
    assert_fused(communicator, families, maps)


@torch.no_grad()
def test_a_sharer_whose_gates_are_closed_is_not_even_run():
    communicator = tiny.communicator("qwen3", "llama", "phi", gate=GateConfig())
    with torch.no_grad():
        communicator.fusers.gates[0].logit.fill_(-1.0)
    ran = []
    handles = [
        sharer.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, sharer in enumerate(communicator.models.sharers)
    ]
    try:
        communicator.prefill(communicator.models.collate(tiny.CONVERSATIONS))
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [1]


def test_the_noise_of_several_sharers_gates_differs():
    communicator = tiny.communicator("qwen3", "gemma3", "gemma3", gate=GateConfig()).train()
    first, second = (gate() for gate in communicator.fusers.gates)
    assert not torch.equal(first, second)


@torch.no_grad()
def test_a_question_exchanged_for_another_gives_another_fused_cache_and_the_receivers_own_prompt():
    communicator = tiny.communicator("qwen3", "llama")
    batch = communicator.models.collate(tiny.CONVERSATIONS)
    other = tiny.next_questions(batch)
    own, right, wrong = (
        communicator.prefill(b, fuse).layers[-1].keys for b, fuse in ((batch, False), (batch, True), (other, True))
    )
    real = batch.prompt_mask[:, :-1].bool()
    changed = lambda a, b: ((a - b).abs().amax((1, 3)) > 1e-6)[real].float().mean()  # noqa: E731
    assert changed(own, right) > 0.5
    assert changed(right, wrong) > 0.5
    assert torch.equal(communicator.prefill(other, False).layers[-1].keys, own)
