"""Takes the rotation of their positions off a model's keys, and puts it on keys for new positions.

Keys of rotary models turn with their positions: pairs of features by angles that grow with the position, each pair with
a frequency of its own (Su et al. 2021, arXiv 2104.09864). transformers keeps the frequencies of all such models in
buffers, scaled as the model wants them; what differs from model to model is which layer uses which of them and which
features form a pair. That is not looked up but measured on the model's own keys.

Dimensions: L layers, B batch, H kv heads, N tokens, D head_dim, R turned pairs of features (2R <= D).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from c2c_lightning.errors import UserError
from c2c_lightning.models.cache import prefill, read_stack
from c2c_lightning.models.loading import kv_shape, longest

PROBED = (7, 300, 4_000)
"""Positions at which a model's keys are compared with those at position 0, as far as the model goes."""
TOKENS = 8  # that are read at each of them


class Rule(NamedTuple):
    """One way to turn a layer's keys."""

    module: nn.Module
    buffer: str  # of the module: frequencies (R), or (positions, 2R) with sines and cosines
    interleaved: bool  # pairs are neighbours, or feature i goes with feature R + i
    backwards: bool

    def cos_sin(self, positions_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Both (B, 1, N, R) in fp32, which is how models compute them: bf16 has no room for a phase at position 300."""
        layer_type = self.buffer.removesuffix("inv_freq").rstrip("_")
        kind = getattr(self.module, "rope_type", None)
        kind = kind.get(layer_type) if isinstance(kind, dict) else kind
        if kind in (
            "dynamic",
            "longrope",
        ):  # which choose their frequencies by the longest position when they are called
            self.module(positions_BN.float(), positions_BN, **({"layer_type": layer_type} if layer_type else {}))
        numbers = getattr(self.module, self.buffer).to(positions_BN.device)
        if numbers.ndim == 2:
            sin, cos = numbers[positions_BN].float().chunk(2, dim=-1)
        else:
            angles = positions_BN[..., None].float() * numbers.float()
            sin, cos = angles.sin(), angles.cos()
        return cos[:, None], (-sin if self.backwards else sin)[:, None]

    def turn(self, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Keys (..., B, H, N, D) turned by the angles, in their own dtype."""
        num_pairs = cos.shape[-1]
        if self.interleaved:
            first, second = slice(0, 2 * num_pairs, 2), slice(1, 2 * num_pairs, 2)
        else:
            first, second = slice(0, num_pairs), slice(num_pairs, 2 * num_pairs)
        x, y = keys[..., first].float(), keys[..., second].float()
        turned = keys.float().clone()
        turned[..., first] = x * cos - y * sin
        turned[..., second] = y * cos + x * sin
        return turned.to(keys.dtype)


class Rotation:
    """How a model turns its keys by their positions, layer by layer, by the model's own rules.

    Layers that do not turn their keys (GPT-2, OPT, ALiBi, layers without positions) keep them as they are; learned
    positions are a part of what such a model has read, and stay in.

    Args:
        model: read at a few positions, one token at a time. All ranks of a sharded one build their Rotation together.

    Raises:
        UserError: the cache cannot be fused (`kv_shape`), or the positions of a layer's keys cannot be undone.
    """

    def __init__(self, model: PreTrainedModel):
        shape = kv_shape(model.config)
        rules = [
            Rule(module, name, interleaved, backwards)
            for module in model.modules()
            for name, numbers in module.named_buffers(recurse=False)
            if name == "embed_positions" or (name.endswith("inv_freq") and not name.endswith("original_inv_freq"))
            if numbers.shape[-1] <= shape.head_dim // (3 - numbers.ndim)
            for interleaved in (False, True)
            for backwards in (False, True)
        ]
        self._rules: list[Rule | None] = [None] * shape.num_layers
        if not rules:
            return
        known: list[Rule | None] = [None, *rules]
        last = longest(model) - 1
        positions = sorted({min(position, last) for position in PROBED})
        start, *keys = _keys_of_single_tokens(model, [0, *positions])
        misfits = torch.zeros(len(known), len(start))
        for position, turned in zip(positions, keys):
            for i, rule in enumerate(known):
                back = _turn([rule] * len(turned), turned, torch.full((TOKENS, 1), position, device=turned.device), -1)
                off = (back.float() - start.float()).flatten(1).norm(dim=1) / start.float().flatten(1).norm(dim=1)
                misfits[i] = torch.maximum(misfits[i], off.cpu())
        best, choice = misfits.min(dim=0)
        # Cosines and sines are rounded to the dtype of the keys, and so are their products.
        allowed = max(4 * torch.finfo(start.dtype).eps, 1e-3)
        if not (best <= allowed).all():
            layer = int(best.argmax())
            raise UserError(
                f"model {model.name_or_path!r} ({model.config.model_type}) cannot be mapped: the positions of its keys "
                f"cannot be undone. In layer {layer}, keys of the same tokens at positions 0 to {positions[-1]} differ "
                f"by {best[layer]:.1%} in norm under the best of {len(rules)} rules (rounding explains {allowed:.1%}). "
                "Choose another model for mapping; fusing needs none of it."
            )
        self._rules = [known[i] for i in choice.tolist()]

    def off(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Keys as if each stood at position 0.

        Args:
            keys: (L, B, H, N, D) of all layers of the model.
            positions: (B, N). Models that choose their frequencies by the longest position (dynamic NTK, LongRoPE)
                find it here, so it should be among them.

        Returns:
            The same shape and dtype; the keys themselves where no layer turns them. What the model multiplies its keys
            with at every position (YaRN's attention factor) stays in.
        """
        return _turn(self._rules, keys, positions, -1)

    def on(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Keys (L, B, H, N, D) of position 0 as they are at positions (B, N); the inverse of `off`."""
        return _turn(self._rules, keys, positions, 1)


def _turn(rules: list[Rule | None], keys: Tensor, positions: Tensor, direction: int) -> Tensor:
    """Keys (L, B, H, N, D) turned forward or back, each layer by its rule."""
    angles = {rule: rule.cos_sin(positions) for rule in set(rules) if rule}
    if not angles:
        return keys
    # One layer after the other: fp32 copies of all of them would take several times the room of the cache.
    turned = [
        rule.turn(layer, angles[rule][0], direction * angles[rule][1]) if rule else layer
        for rule, layer in zip(rules, keys.unbind())
    ]
    return torch.stack(turned)


def _keys_of_single_tokens(model: PreTrainedModel, positions: list[int]) -> list[Tensor]:
    """Keys (L, B, H, 1, D) of some tokens at each position.

    A token that is read alone attends to itself alone, so its hidden states are the same to the bit at all positions,
    in every dtype, and its keys differ by the rotation and nothing else.
    """
    text = model.config.get_text_config(decoder=True)
    ids = torch.linspace(0, text.vocab_size - 1, TOKENS + 2, device=model.device).long()[1:-1, None]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # nobody reads single tokens at position 0 again
            caches = [prefill(model, ids, torch.ones_like(ids), torch.full_like(ids, p)) for p in positions]
    finally:
        for module, training in modes.items():
            module.training = training
    return [read_stack(cache, range(text.num_hidden_layers))[0] for cache in caches]
