"""What every mapper is: the sharer's KV entries of a token in, the receiver's KV entries for one slot out.

A slot is a place in the receiver's cache that no token of its own fills. Keys have no rotation here: whoever calls
takes that of the sharer's position off before the map, and puts that of the slot on after it.

Dimensions: T tokens, Ls and Lr layers, Hs and Hr kv heads, Ds and Dr head_dim of sharer and receiver;
I = 2 * Ls * Hs * Ds features of a token of the sharer (keys of all layers, then values), O = 2 * Lr * Hr * Dr of a slot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from c2c_lightning.errors import UserError
from c2c_lightning.fuser.base import KVShape, check_numbers, class_path
from c2c_lightning.fuser.fusers import Layers, select_layers


class Mapper(nn.Module, ABC):
    """Maps what a sharer keeps of each token of a text to what the receiver would keep of it.

    A subclass states its map in `map`. Its `__init__` takes (sharer, receiver, layers) and then its own sizes by
    keyword, and hands all of them to `super().__init__` so that a saved mapper can name them.

    Args:
        sharer: shape of the sharer's cache.
        receiver: shape of the receiver's cache.
        layers: the receiver layers that hear of the text: `all`, `first:K`, `last:K`, `every:K`, or a list of them. A
            layer left out is told nothing: it gets the same keys and values, their means, in every slot. It cannot be
            left without entries, as a closed gate leaves a fused layer alone, since a cache has the same slots in all
            layers.
        **init_args: the subclass's own sizes.

    Attributes:
        class_path, init_args: `class(sharer, receiver, **init_args)` makes a mapper like this one.
        heard: the receiver layers that hear of the text, ascending.

    Raises:
        UserError: layers that the receiver does not have, or none, or a word where a number belongs.
    """

    def __init__(self, sharer: KVShape, receiver: KVShape, layers: Layers = "all", **init_args: Any):
        super().__init__()
        check_numbers("mapper", type(self), init_args)
        self.sharer, self.receiver = sharer, receiver
        self.heard = sorted(select_layers(layers, receiver.num_layers, "mapper layers"))
        if not self.heard:
            raise UserError("mapper layers is []: name at least one layer of the receiver.")
        self.init_args = {"layers": layers, **init_args}
        self.class_path = class_path(type(self), "c2c_lightning.mapper")  # FSDP2 replaces the class

    @abstractmethod
    def map(self, x_TI: Tensor) -> Tensor:
        """The slots' features (T, O) for those of T tokens; a feature is ((part * L + layer) * H + head) * D + d."""

    def says_nothing(self) -> Tensor:
        """The features (O) of a slot that is told nothing of any text; here the map of zeros."""
        number = 2 * self.sharer.num_layers * self.sharer.features
        return self.map(next(self.buffers(), next(self.parameters(), torch.zeros(0))).new_zeros(1, number))[0]

    def blank(self, num_tokens: int, device: torch.device) -> Tensor:
        """A stack of the sharer (2, Ls, T, Hs, Ds), of T tokens, that is all zeros."""
        shape = self.sharer
        return torch.zeros(2, shape.num_layers, num_tokens, shape.num_kv_heads, shape.head_dim, device=device)

    def forward(self, stack: Tensor) -> Tensor:
        """What the receiver's cache is to have in the slots of T tokens.

        Args:
            stack: (2, Ls, T, Hs, Ds), keys without rotation, then values, of all sharer layers.

        Returns:
            (2, Lr, T, Hr, Dr), keys without rotation, then values; in the parameters' dtype, or in autocast's.

        Raises:
            UserError: the stack is not one of the sharer that the mapper was made for.
        """
        x_TI = features(stack, self.sharer, "sharer")
        y_TO = self.map(x_TI)
        if torch.is_autocast_enabled(stack.device.type):
            y_TO = y_TO.to(torch.get_autocast_dtype(stack.device.type))
        shape = self.receiver
        return y_TO.unflatten(1, (2, shape.num_layers, shape.num_kv_heads, shape.head_dim)).movedim(0, 2)


def features(stack: Tensor, shape: KVShape, model: str) -> Tensor:
    """A stack (2, L, T, H, D) as features of its tokens, (T, 2 * L * H * D).

    Raises:
        UserError: the stack has another shape than the model's.
    """
    expected = (2, shape.num_layers, shape.num_kv_heads, shape.head_dim)
    if stack.ndim != 5 or (*stack.shape[:2], *stack.shape[3:]) != expected:
        parts, layers, heads, head_dim = expected
        raise UserError(
            f"the mapper was made for a {model} whose stacks are ({parts}, {layers}, tokens, {heads}, {head_dim}), and "
            f"got one of {tuple(stack.shape)}: use the {model} that it was fitted with, or fit another mapper."
        )
    return stack.movedim(2, 0).flatten(1)


MapperFactory = Callable[[KVShape, KVShape], Mapper]
