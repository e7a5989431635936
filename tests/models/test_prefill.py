"""What a prefill computes, and what it leaves out."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from c2c_lightning.models.cache import position_ids, prefill
from tests.models import tiny


@pytest.fixture(params=tiny.FAMILIES)
def model(request):
    return tiny.model(request.param)


def prompts(model):
    ids = torch.arange(12).reshape(2, 6) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return ids, mask


def test_a_prefill_is_the_cache_of_a_whole_forward_to_the_bit(model):
    ids, mask = prompts(model)
    cache = prefill(model, ids, mask)
    whole = DynamicCache()
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), past_key_values=whole)
    assert type(cache) is DynamicCache
    assert len(cache.layers) == len(whole.layers) == model.config.num_hidden_layers
    for ours, theirs in zip(cache.layers, whole.layers):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


def test_a_prefill_spends_nothing_after_the_last_layers_keys_and_values():
    model = tiny.build("qwen3")
    reached = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: reached.append("mlp"))
    model.model.norm.register_forward_pre_hook(lambda *_: reached.append("norm"))
    prefill(model, *prompts(model))
    assert reached == ["mlp"] * (model.config.num_hidden_layers - 1)


def test_a_prefill_goes_through_to_the_end_where_something_waits_for_it():
    model = tiny.build("qwen3")
    expected = prefill(model, *prompts(model))
    freed = []
    model.model.layers[-1].register_forward_hook(lambda *_: freed.append("weights"))
    cache = prefill(model, *prompts(model))
    assert freed == ["weights"]
    for ours, theirs in zip(cache.layers, expected.layers):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
