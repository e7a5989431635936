"""What every fuser is: KV stacks in, a fused receiver stack out.

A KV stack is one tensor (2, L, B, H, N, D): keys (after RoPE), then values, of all L mapped layers.
Dimensions: P parts that are fused (keys, values or both), L mapped layers, G groups = the open ones of
the P * L (part, layer) pairs, B batch, H kv heads, N tokens, T those of the B * N tokens that have a sharer
token opposite, D head_dim, F = H * D features.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from c2c_lightning.errors import UserError
from c2c_lightning.fuser.gate import Gate
from c2c_lightning.fuser.stacked import pick

OURS = "c2c_lightning.fuser"


@dataclass(frozen=True)
class KVShape:
    """Shape of a model's KV cache: layers, kv heads, head_dim."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    @property
    def features(self) -> int:
        return self.num_kv_heads * self.head_dim


def check_numbers(thing: str, owner: type, init_args: Mapping[str, Any]) -> None:
    """Refuses what is no number where `owner`, a fuser's or mapper's class, has one as default."""
    for name, value in init_args.items():
        parameter = inspect.signature(owner).parameters.get(name)
        numbers = {int: (int,), float: (int, float)}.get(type(parameter.default) if parameter else None)
        if numbers and (isinstance(value, bool) or not isinstance(value, numbers)):
            raise UserError(f"{thing} {name} is {value!r}: give a number, such as {parameter.default}.")


def class_path(owner: type, room: str) -> str:
    """Where a class is imported from; those of a room of ours go by the name that the room exports."""
    module = room if owner.__module__.startswith(f"{room}.") else owner.__module__
    return f"{module}.{owner.__qualname__}"


class Fuser(nn.Module, ABC):
    """Fuses a sharer's KV stack into the receiver's: receiver + gate * update.

    A subclass has one network per (part, layer) pair, stacked along the first axis of its parameters, part by part,
    and states its update in `update`; or it is joint, and a network reads keys and values of its layer together. Its
    `__init__` takes (sharer, receiver, gate) and then its own sizes by keyword, and hands those sizes to
    `super().__init__` so that a saved fuser can name them.

    Args:
        sharer: shape of the sharer's cache (its num_layers is not used: L comes from the gate).
        receiver: shape of the receiver's cache.
        gate: the gates of the L mapped layers.
        **init_args: the subclass's own sizes.
    """

    joint: ClassVar[bool] = False  # reads keys and values of a layer together
    for_one_sharer: ClassVar[bool] = False  # would do the same for a second one
    # Whether `update` draws random numbers in training; a subclass that knows that it does not says so.
    draws: bool = True

    def __init__(self, sharer: KVShape, receiver: KVShape, gate: Gate, **init_args: Any):
        super().__init__()
        check_numbers("fuser", type(self), init_args)
        self.sharer, self.receiver, self.gate, self.init_args = sharer, receiver, gate, init_args
        self.recomputes = False  # activations in the backward pass, instead of keeping them
        self.num_groups = len(gate.parts) * len(gate.receiver_layers)
        self.class_path = class_path(type(self), OURS)  # FSDP2 replaces the class, so remember its path now

    @abstractmethod
    def update(self, sharer_GTF: Tensor, receiver_GTF: Tensor, groups: Tensor | None) -> Tensor:
        """What an open gate adds to the receiver's cache, token by token.

        Args:
            sharer_GTF: sharer features of T tokens, a feature being head * head_dim + d.
            receiver_GTF: receiver features of the same tokens.
            groups: rows of the stacked parameters that the G groups are, None for all in order.

        Returns:
            (G, T, receiver features)

        A joint fuser is given rows of twice the features, of a layer's keys, then of its values: one for each layer if
        `groups` is None, otherwise one for each pair. It returns the same as any other.
        """

    def forward(
        self, sharer: Tensor, receiver: Tensor, onto: Tensor | None = None, aligned: Tensor | None = None
    ) -> Tensor:
        """Fuses two KV stacks, but for layers whose gate is closed and tokens with no sharer token opposite.

        These are left as they are, to the bit, and cost nothing.

        Args:
            sharer: (2, L, B, Hs, N, Ds), gathered so that token n stands opposite the receiver's n.
            receiver: (2, L, B, Hr, N, Dr), what the fuser reads.
            onto: what the update is added to, if not `receiver`: with several sharers their updates
                add up while each fuser reads the receiver's own cache.
            aligned: (T,) places among the B * N of the receiver tokens that have a sharer token opposite; None for
                all of them.

        Returns:
            The fused stack, (2, L, B, Hr, N, Dr) in the dtype of `receiver`.
        """
        onto = receiver if onto is None else onto
        open_pairs = self.open_pairs(sharer, receiver, aligned)
        if open_pairs is None:
            return onto
        recomputes = self.recomputes and torch.is_grad_enabled()
        update = partial(checkpoint, self.update, use_reentrant=False) if recomputes else self.update
        return self.add(onto, update(*open_pairs[:3]), open_pairs)

    def open_pairs(self, sharer: Tensor, receiver: Tensor, aligned: Tensor | None) -> OpenPairs | None:
        """What there is to do, picked out of the stacks that `forward` takes; None if all gates are closed.

        It may be of no token: ranks that train together all go back through their parameters.
        """
        active = self.gate.active()
        if not active:
            return None
        L, device = receiver.shape[1], receiver.device
        in_stack = in_parameters = None
        # A stack has both parts, and the parameters may have one.
        if len(active) < 2 * L:
            in_stack = torch.tensor([self.gate.parts[p] * L + layer for p, layer in active], device=device)
        if len(active) < self.num_groups:
            in_parameters = torch.tensor([p * L + layer for p, layer in active], device=device)
        B, N = receiver.shape[2], receiver.shape[4]
        tokens = None if aligned is None or len(aligned) == B * N else aligned
        read = in_stack
        if self.joint:
            layers = range(L) if in_parameters is None else [layer for _, layer in active]
            both = [part * L + layer for part in (0, 1) for layer in layers]
            read = None if in_parameters is None else torch.tensor(both, device=device)
        features = [pick(pick(token_features(x), 0, read), 1, tokens) for x in (sharer, receiver)]
        if self.joint:
            features = [torch.cat(x.split(len(layers)), dim=-1) for x in features]
        if not torch.is_autocast_enabled(device.type):
            dtype = next(self.parameters()).dtype
            features = [x_GTF.to(dtype) for x_GTF in features]
        return OpenPairs(*features, in_parameters, in_stack, tokens)

    def add(self, onto: Tensor, update_GTF: Tensor, open_pairs: OpenPairs) -> Tensor:
        """`onto`, a receiver stack, with the gated update of its open pairs."""
        _, L, B, H, N, D = onto.shape
        gate_GH = pick(self.gate().flatten(0, 1), 0, open_pairs.groups)
        gated_GTF = scale_heads(update_GTF, gate_GH[:, None])
        before = token_features(onto)
        rows = pick(before, 0, open_pairs.in_stack)
        fused = (pick(rows, 1, open_pairs.tokens) + gated_GTF).to(onto.dtype)
        if open_pairs.tokens is not None:
            fused = rows.index_copy(1, open_pairs.tokens, fused)
        if open_pairs.in_stack is not None:
            fused = before.index_copy(0, open_pairs.in_stack, fused)
        return fused.reshape(2, L, B, N, H, D).transpose(3, 4)


class OpenPairs(NamedTuple):
    """The input of a fuser's networks: features of the open (part, layer) pairs, in the dtype of parameters or autocast.

    Of the indices, None stands for all in order.
    """

    sharer_GTF: Tensor
    receiver_GTF: Tensor
    groups: Tensor | None  # the pairs' rows in the parameters
    in_stack: Tensor | None  # the pairs' rows among the 2 * L of a stack
    tokens: Tensor | None  # the tokens' places among the B * N


def token_features(stack: Tensor) -> Tensor:
    """A KV stack as features, (2 * L, B * N, H * D); a view if it lies in memory as (2, L, B, N, H, D)."""
    return stack.transpose(3, 4).flatten(4).flatten(2, 3).flatten(0, 1)


def scale_heads(x_GTF: Tensor, factor_GTH: Tensor) -> Tensor:
    """Features times a factor for each head, or for all of them if there is one; T may be 1 for all tokens."""
    return (factor_GTH[..., None] * x_GTF.unflatten(-1, (factor_GTH.shape[-1], -1))).flatten(-2)


FuserFactory = Callable[[KVShape, KVShape, Gate], Fuser]
