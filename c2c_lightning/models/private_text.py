"""Text that a sharer alone has read, and the slots in the receiver's prompt that stand for its tokens.

The receiver's prompt is laid out as if it had read the text: what its template says before the message, one slot for
each of the sharer's tokens, the message, and what the template says after it. A mapper makes what stands in the slots;
the receiver reads what follows on top of them.

Dimensions: B conversations, N prompt tokens but the last, S tokens of texts, M tokens of prompts with texts, T slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

UNREAD = -1


@dataclass
class PrivateText:
    """The text of one conversation, as the sharer reads it and as the receiver would."""

    ids: list[int]  # the sharer's tokens, with the one that its tokenizer puts before a text
    first: int  # the first of them that has a slot; all that follow have one
    at: int  # how many of the receiver's tokens stand before the slots
    read_ids: list[int]  # the receiver's ids of the prompt in which it reads the text itself
    opposite: np.ndarray  # for each slot the newest of `read_ids` that has read no further in the text, or UNREAD

    @property
    def num_slots(self) -> int:
        return len(self.ids) - self.first


@dataclass
class PrivateTexts:
    """The texts of a batch; conversations without one have no slots."""

    ids: Tensor  # (B, S) left-padded
    mask: Tensor  # (B, S) 1 for real tokens
    tokens: Tensor  # (T,) places among the B * S of the tokens that have a slot
    slots: Tensor  # (T,) places of the slots among the B * N
    rows: Tensor  # (T,) the conversation of each slot
    heads: Tensor  # (B,) how many of the receiver's tokens stand before the slots
    numbers: Tensor  # (B,) how many slots there are
    read_ids: Tensor  # (B, M) left-padded, the receiver's prompts in which it reads the texts itself
    read_mask: Tensor  # (B, M) 1 for real tokens
    opposite: Tensor  # (T,) places among the B * M of the token opposite each slot, or UNREAD

    @classmethod
    def of(
        cls, texts: Sequence[PrivateText], padded: tuple[Tensor, Tensor], read: tuple[Tensor, Tensor], mask_BN: Tensor
    ) -> PrivateTexts:
        """The texts of a batch.

        Args:
            texts: one for each conversation.
            padded: their ids (B, S) and mask.
            read: the prompts (B, M) in which the receiver reads them itself, and their mask.
            mask_BN: of the receiver's prompts with slots, but for the last token.
        """
        (ids, mask), (read_ids, read_mask) = padded, read
        tokens, slots, opposite = [], [], []
        for row, text in enumerate(texts):
            number = text.num_slots
            tokens.append(torch.arange((row + 1) * ids.shape[1] - number, (row + 1) * ids.shape[1]))
            begin = row * mask_BN.shape[1] + int(mask_BN.shape[1] - mask_BN[row].sum()) + text.at
            slots.append(torch.arange(begin, begin + number))
            shift = (row + 1) * read_ids.shape[1] - len(text.read_ids)
            places = torch.from_numpy(text.opposite)
            opposite.append(torch.where(places == UNREAD, UNREAD, places + shift))
        numbers = torch.tensor([text.num_slots for text in texts])
        rows = torch.arange(len(texts)).repeat_interleave(numbers)
        heads = torch.tensor([text.at for text in texts])
        return cls(
            ids, mask, *map(torch.cat, (tokens, slots)), rows, heads, numbers, read_ids, read_mask, torch.cat(opposite)
        )

    @property
    def positions(self) -> Tensor:
        """Of the slots in the receiver's prompts, (T,)."""
        first = self.numbers.cumsum(0) - self.numbers
        return self.heads[self.rows] + torch.arange(len(self.rows), device=self.rows.device) - first[self.rows]
