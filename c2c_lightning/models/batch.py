"""Aligned prompts and responses as padded tensors.

Dimensions: B conversations, N receiver prompt tokens, S sharer prompt tokens, R response tokens.
Prompts are padded on the left so that they all end together, responses on the right after them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2c_lightning.models.alignment import AlignedPrompt
from c2c_lightning.models.cache import left_padded, position_ids
from c2c_lightning.models.private_text import UNREAD, PrivateText, PrivateTexts
from c2c_lightning.models.read_text import UNALIGNED

ALONE = {"sharers": [], "private": None, "partners": None}


@dataclass
class SharerPrompt:
    """A batch of prompts as one sharer reads them."""

    ids: Tensor  # (B, S) left-padded
    mask: Tensor  # (B, S) 1 for real tokens
    positions: Tensor  # (B, N - 1) column of `ids` opposite each receiver token but the last, or UNALIGNED
    aligned: Tensor = field(init=False)  # (T,) places among the B * (N - 1) of the receiver tokens that have one

    def __post_init__(self) -> None:
        # Found where the batch is made, and not on a GPU, which would have to be waited for.
        self.aligned = (self.positions != UNALIGNED).flatten().nonzero()[:, 0]


@dataclass
class Batch:
    """A batch of conversations."""

    prompt_ids: Tensor  # (B, N) left-padded; the last column is the last prompt token, which is not fused
    prompt_mask: Tensor  # (B, N) 1 for real tokens
    sharers: list[SharerPrompt]  # the prompts as each sharer reads them
    response_ids: Tensor  # (B, R) right-padded, R at least 1
    response_mask: Tensor  # (B, R) 1 for supervised tokens
    references: list[str] | None = None  # the responses as text, where the data says that exact answers are meaningful
    epoch: int = 0  # which pass over the data this batch belongs to
    index: int = 0  # its place in that pass, counted over all ranks
    skipped: dict[str, int] = field(default_factory=dict)  # records that are missing from it, or merged, by reason
    # For each conversation the prompt of another one, from elsewhere in the validation set, whose caches the control
    # `wrong_question` fuses: of another record and with another prompt, and, where there is such a one, without a
    # sentence in common. Without responses. Set in validation where `references` are; None where the data have no
    # other question. With private texts it is the same question with another text, and has the other one as partner.
    partners: Batch | None = None
    private: PrivateTexts | None = None  # what the first sharer alone has read, for which prompts have slots
    supervised: Tensor = field(init=False)  # (2, T) rows and columns of the supervised tokens

    def __post_init__(self) -> None:
        self.supervised = self.response_mask.nonzero().T

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, which need not have all of it yet: memory that is pinned is copied meanwhile."""
        return each_tensor(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU can read by itself; called by `DataLoader`."""
        return each_tensor(self, Tensor.pin_memory)

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def positions(self, mask: Tensor) -> Tensor:
        """Positions (B, any) of tokens behind private texts, given the mask of prompts, or of prompts and responses.

        They count real tokens, and those of a text that have no slot.
        """
        return position_ids(mask) + (0 if self.private is None else self.private.skipped[:, None])

    @property
    def num_supervised(self) -> Tensor:
        return self.response_mask.sum()

    def with_texts(self) -> Batch:
        """The batch in which the receiver reads private texts itself, and no sharer reads anything."""
        if self.private is None:
            return replace(self, **ALONE)
        return replace(self, prompt_ids=self.private.read_ids, prompt_mask=self.private.read_mask, **ALONE)

    def behind_texts(self) -> tuple[Tensor, Tensor]:
        """Where the tokens that follow the texts stand, in the prompts with slots and in those with texts.

        Returns:
            Places among the B * N tokens of the ones and among the B * M of the others, but for their last tokens. Both
            are padded on the left, so they end alike, up to a slot at least.
        """
        own, read = self.prompt_ids, self.private.read_ids
        width = min(own.shape[1], read.shape[1])
        alike = (own[:, -width:] == read[:, -width:]).flip(1).cumprod(1).flip(1).bool()
        rows, columns = (alike & (self.private.numbers > 0)[:, None])[:, :-1].nonzero().T
        return tuple(rows * (ids.shape[1] - 1) + columns + ids.shape[1] - width for ids in (own, read))

    def behind_slots(self, number: int) -> Batch:
        """The batch in which the receiver reads private texts itself, each behind so many slots; no sharer reads."""
        private, prompts, texts = self.private, [], []
        rows = zip(private.read_ids, private.read_mask.bool(), private.heads.tolist(), private.numbers.tolist())
        for ids, mask, at, has_text in rows:
            itself, slots = ids[mask].tolist(), [0] * (number if has_text else 0)
            prompts.append(itself[:at] + slots + itself[at:])
            texts.append(PrivateText(slots, 0, at, itself, np.full(len(slots), UNREAD), []))
        ids, mask = pad(prompts, 0, left=True, least=2)
        padded = pad([text.ids for text in texts], 0, left=True)
        read, asked = (private.read_ids, private.read_mask), (private.asked_ids, private.asked_mask)
        slots = PrivateTexts.of(texts, padded, read, asked, mask[:, :-1])
        alone = ALONE | {"private": slots}
        return replace(self, prompt_ids=ids, prompt_mask=mask, **alone).to(self.prompt_ids.device)

    def without_texts(self) -> Batch:
        """The batch in which nobody has read the private texts, and no sharer reads anything."""
        own = self.prompt_mask.bool()
        own[:, :-1] = own[:, :-1].flatten().index_fill(0, self.private.slots, False).view_as(own[:, :-1])
        lengths = own.sum(1)
        columns = left_padded(lengths, int(lengths.max()))
        ids = torch.zeros_like(columns, dtype=self.prompt_ids.dtype).masked_scatter(columns, self.prompt_ids[own])
        return replace(self, prompt_ids=ids, prompt_mask=columns.long(), **ALONE)


def collate(
    prompts: Sequence[AlignedPrompt],
    responses: Sequence[list[int]] | None = None,
    pad_ids: Sequence[int] = (0,),
) -> Batch:
    """Pads a batch.

    Args:
        prompts: aligned conversations.
        responses: supervised token ids; None for generation.
        pad_ids: padding ids of the receiver, then of every sharer.
    """
    responses = responses if responses is not None else [[] for _ in prompts]
    # The last token is not fused: with a column of padding before it, a prompt of one token goes the way of the others.
    prompt_ids, prompt_mask = pad([p.receiver_ids for p in prompts], pad_ids[0], left=True, least=2)
    # One column at least: a batch with nothing to supervise goes through the receiver like any other.
    response_ids, response_mask = pad(responses, pad_ids[0], left=False, least=1)
    sharers = []
    for i, pad_id in enumerate(pad_ids[1:]):
        ids, mask = pad([p.sharer_ids[i] for p in prompts], pad_id, left=True)
        positions = torch.full((len(prompts), prompt_ids.shape[1] - 1), UNALIGNED)
        for row, prompt in enumerate(prompts):
            opposite = torch.from_numpy(prompt.positions[i])
            shift = ids.shape[1] - len(prompt.sharer_ids[i])
            columns = torch.where(opposite == UNALIGNED, UNALIGNED, opposite + shift)
            positions[row, positions.shape[1] - len(opposite) :] = columns
        sharers.append(SharerPrompt(ids, mask, positions))
    batch = Batch(prompt_ids, prompt_mask, sharers, response_ids, response_mask)
    if any(p.private for p in prompts):
        texts = [p.private or PrivateText.none(p.receiver_ids, *p.sharer_ids[:1]) for p in prompts]
        *_, pad_id = pad_ids[:2]  # the first sharer's, if there is one
        padded = pad([text.ids for text in texts], pad_id, left=True)
        read = pad([text.read_ids for text in texts], pad_ids[0], left=True)
        asked = pad([text.asked_ids for text in texts], pad_id, left=True)
        batch.private = PrivateTexts.of(texts, padded, read, asked, prompt_mask[:, :-1])
    return batch


def exchange_questions(batch: Batch, other: Batch) -> Batch:
    """Every receiver prompt with the sharers' reading of another question.

    The control for what a cache says of its own question. The two prompts are matched from their
    ends; where the other one is shorter, its first token stands opposite the rest. What had nothing
    opposite has nothing.

    Args:
        batch: the questions to answer.
        other: for each of them the question whose caches are fused.
    """
    real = other.prompt_mask[:, :-1]
    shorter_by = real.shape[1] - (batch.prompt_mask.shape[1] - 1)
    columns = torch.arange(shorter_by, real.shape[1], device=real.device)
    opposite = torch.maximum(columns, real.argmax(1, keepdim=True))
    sharers = []
    for own, their in zip(batch.sharers, other.sharers):
        positions = their.positions.gather(1, opposite)
        # Nothing is fused into slots, nor where the sharers have not read what the receiver has.
        positions = positions.where(own.positions != UNALIGNED, UNALIGNED)
        sharers.append(SharerPrompt(their.ids, their.mask, positions))
    return replace(batch, sharers=sharers)


def each_tensor(part: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a batch, or of a part of one, with what a function makes of each tensor."""
    twin = copy(part)
    for name, value in vars(part).items():
        if isinstance(value, Tensor):
            setattr(twin, name, function(value))
        elif isinstance(value, Batch | PrivateTexts):
            setattr(twin, name, each_tensor(value, function))
        elif isinstance(value, list):
            setattr(twin, name, [each_tensor(v, function) if isinstance(v, SharerPrompt) else v for v in value])
    return twin


def pad(rows: Sequence[list[int]], pad_id: int, left: bool, least: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids (B, T), T the longest row's and at least `least`, and their mask, 1 for real tokens."""
    width = max([least, *map(len, rows)])
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, at] = torch.tensor(row, dtype=ids.dtype)
        mask[i, at] = 1
    return ids, mask
