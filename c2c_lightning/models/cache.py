"""KV caches of transformers as KV stacks, and forward passes that spend nothing on unwanted logits.

Dimensions: L layers, B batch, H kv heads, N tokens, D head_dim, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from c2c_lightning.fuser import PART_NAMES
from c2c_lightning.models.loading import is_compiled, is_sharded, kv_shape


@contextmanager
def logits_at(model: PreTrainedModel, index: tuple[Tensor | slice, Tensor | slice]) -> Iterator[None]:
    """Within it, the model's forward returns logits (1, T, V) of the T tokens at an index into (B, N).

    The hidden states are picked just before the output embeddings, so the model is still entered
    through its root (as FSDP2 needs) and no other logits are ever computed.
    """
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: (args[0][index].flatten(0, -2).unsqueeze(0), *args[1:])
    )
    try:
        yield
    finally:
        handle.remove()


class LastLayerFilled(Exception):
    """Ends a prefill: what the last layer makes of its keys and values, nobody needs."""


class PrefillCache(DynamicCache):
    """A cache that ends the forward pass as soon as the last of the model's layers has keys and values."""

    def __init__(self, num_layers: int):
        super().__init__()
        self.num_layers = num_layers

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        all_of_them = super().update(keys, values, layer_idx, *args, **kwargs)
        if layer_idx == self.num_layers - 1:
            raise LastLayerFilled
        return all_of_them


@torch.no_grad()
def prefill(
    model: PreTrainedModel, ids_BN: Tensor, mask_BN: Tensor, positions_BN: Tensor | None = None
) -> DynamicCache:
    """The model's cache after reading left-padded prompts; no vocabulary logits are computed.

    Nor is the last layer's attention and MLP, unless something waits for the end of the forward pass.
    Sliding-window layers keep every token here: fusion needs them, and the window is kept by the mask.
    Positions count the real tokens, unless others are given.
    """
    filled = DynamicCache() if is_watched(model) else PrefillCache(kv_shape(model.config).num_layers)
    with logits_at(model, (slice(None), slice(0, 0))), suppress(LastLayerFilled):
        model(
            input_ids=ids_BN,
            attention_mask=mask_BN,
            position_ids=position_ids(mask_BN) if positions_BN is None else positions_BN,
            past_key_values=filled,
            use_cache=True,
        )
    cache = DynamicCache()  # that a response can go on with
    cache.layers = filled.layers
    return cache


def is_watched(model: PreTrainedModel) -> bool:
    """Whether a forward pass has to come to its end."""
    # FSDP frees after a module's forward what it gathered before; and a compiled module cannot be left in the middle.
    hooked = any(module._forward_hooks or hasattr(module, "_hf_hook") for module in model.modules())
    return hooked or is_compiled(model) or is_sharded(model)


def branch(cache: DynamicCache) -> DynamicCache:
    """A cache with the same entries, which can be written to and grow while the first one stays as it is."""
    twin = copy.copy(cache)
    # A layer puts new tensors in the place of the old ones, and never writes into them.
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def position_ids(mask_BN: Tensor) -> Tensor:
    """Positions that count real tokens only, (B, N)."""
    return (mask_BN.cumsum(-1) - 1).clamp(min=0)


def read_stack(cache: DynamicCache, layers: Sequence[int], positions: Tensor | None = None) -> Tensor:
    """KV stack (2, L, B, H, N, D) of some layers, gathered at (B, N) token positions if given.

    It lies in memory as (2, L, B, N, H, D), so that a fuser's features are a view of it.
    """
    tensors = [getattr(cache.layers[layer], part) for part in PART_NAMES for layer in layers]
    if positions is None:
        tokens = [t.transpose(1, 2) for t in tensors]
    else:
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        tokens = [t.transpose(1, 2)[rows, positions] for t in tensors]
    return torch.stack(tokens).unflatten(0, (2, len(layers))).transpose(3, 4)


def write_stack(cache: DynamicCache, layers: Sequence[int], stack: Tensor) -> None:
    """Puts a KV stack in the place of the cache's own entries of these layers."""
    # Taken apart in one go: the gradient of an entry picked by its index would be a whole stack of zeros around it.
    keys, values = (part.unbind() for part in stack.unbind())
    for i, layer in enumerate(layers):
        cache.layers[layer].keys, cache.layers[layer].values = keys[i], values[i]
