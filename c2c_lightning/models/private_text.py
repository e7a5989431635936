"""Text that a sharer alone has read, and the slots in the receiver's prompt that stand for its tokens.

The receiver's prompt is laid out as if it had read the text: what its template says before the message, one slot for
each of the sharer's tokens, the message, and what the template says after it. A mapper makes what stands in the slots;
the receiver reads what follows on top of them.

If the sharer has read a text before, what the mapper made of all of its tokens or of some is `Handed` over instead.
Slots stand where their tokens would, and what follows a text stands behind all of its tokens.

Dimensions: B conversations, N prompt tokens but the last, S tokens of texts, M tokens of the receiver's prompts with
texts, Q of the sharer's, T slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from c2c_lightning.errors import UserError
from c2c_lightning.mapper import Handed
from c2c_lightning.models.chat import Message
from c2c_lightning.models.read_text import ReadText

UNREAD = -1
PRIVATE, RECEIVER_ONLY = "private", "receiver_only"  # keys of a user's message, see `chat.Message`
BETWEEN = "\n\n"  # between such a text and the message's content


def reads(messages: list[Message], *kinds: str) -> list[Message]:
    """The messages for a model that itself reads texts of these kinds, each before its message's content."""
    read = []
    for message in messages:
        texts = [text for kind in kinds if (text := message.get(kind) or "").strip()]
        shared = {key: value for key, value in message.items() if key not in (PRIVATE, RECEIVER_ONLY)}
        read.append({**shared, "content": BETWEEN.join([*texts, message["content"]])} if texts else shared)
    return read


def reads_all(messages: list[Message]) -> list[Message]:
    """The messages for a model that reads everything itself."""
    return reads(messages, PRIVATE, RECEIVER_ONLY)


def text_apart(messages: list[Message]) -> int | None:
    """Which message has a text that one of the models alone reads; None if none has.

    Raises:
        UserError: there are several, or it is no user's.
    """
    texts = [(i, m.get(kind) or "") for i, m in enumerate(messages) for kind in (PRIVATE, RECEIVER_ONLY)]
    apart = [i for i, text in texts if isinstance(text, Handed) or text.strip()]
    if len(apart) > 1 or any(messages[i]["role"] != "user" for i in apart):
        raise UserError(
            "a text that one model alone reads (private, receiver_only) stands beside the content of one user's message: "
            "give one text"
        )
    return apart[0] if apart else None


@dataclass
class PrivateText:
    """The text of one conversation, as the sharer reads it and as the receiver would."""

    ids: list[int]  # the sharer's tokens, with the one that its tokenizer puts before a text
    first: int  # the first of them that has a slot; all that follow have one
    at: int  # how many of the receiver's tokens stand before the slots
    read_ids: list[int]  # the receiver's ids of the prompt in which it reads the text itself
    opposite: np.ndarray  # for each slot the newest of `read_ids` that has read no further in the text, or UNREAD
    asked_ids: list[int]  # the sharer's ids of the prompt in which it reads the text and is asked itself
    handed: Handed | None = None  # what stands in the slots, of a text without ids, which nobody can read any more

    @classmethod
    def of(
        cls,
        begin: list[int],
        text: ReadText,
        own: ReadText,
        itself: ReadText,
        section: int,
        asked_ids: list[int],
    ) -> PrivateText:
        """A text that stands before a section of the prompt.

        Args:
            begin: what the sharer's tokenizer puts before a text.
            text: as the sharer reads it.
            own: the prompt without it, as the receiver reads it.
            itself: the prompt with it, as the receiver would.
            section: of both.
            asked_ids: see `PrivateText`.
        """
        first, stop = np.searchsorted(itself.section, [section, section + 1])
        num_read = np.searchsorted(itself.ends[first:stop], text.ends, side="right")
        opposite = np.where(num_read > 0, first + num_read - 1, UNREAD)
        at = int(np.searchsorted(own.section, section))
        return cls(begin + text.ids, len(begin), at, itself.ids, opposite, asked_ids)

    @classmethod
    def none(cls, receiver_ids: list[int], sharer_ids: Sequence[int] = ()) -> PrivateText:
        """Of a conversation that has none, beside others in a batch that have one."""
        return cls([], 0, len(receiver_ids) - 1, receiver_ids, np.array([], dtype=np.int64), [*sharer_ids])

    @property
    def num_slots(self) -> int:
        return len(self.ids) - self.first if self.handed is None else len(self.handed.kept)


@dataclass
class PrivateTexts:
    """The texts of a batch; conversations without one have no slots."""

    ids: Tensor  # (B, S) left-padded
    mask: Tensor  # (B, S) 1 for real tokens
    tokens: Tensor  # places among the B * S of the tokens that have a slot; those of texts handed over are not there
    slots: Tensor  # (T,) places of the slots among the B * N
    rows: Tensor  # (T,) the conversation of each slot
    heads: Tensor  # (B,) how many of the receiver's tokens stand before the slots
    numbers: Tensor  # (B,) how many slots there are
    read_ids: Tensor  # (B, M) left-padded, the receiver's prompts in which it reads the texts itself
    read_mask: Tensor  # (B, M) 1 for real tokens
    opposite: Tensor  # for each of `tokens` the place among the B * (M - 1) of the one opposite, or UNREAD
    asked_ids: Tensor  # (B, Q) left-padded, the sharer's prompts in which it reads the texts and is asked itself
    asked_mask: Tensor  # (B, Q) 1 for real tokens
    offsets: Tensor  # (T,) places of the slots' tokens in their texts
    skipped: Tensor  # (B,) how many tokens of a text have no slot
    is_handed: Tensor  # (T,) true for the slots of texts that are handed over
    handed: Tensor | None  # (2, L, T', H, D) what stands in these slots, keys without rotation
    num_bytes: list[int | None]  # of the texts that are handed over; None for those that are read

    @classmethod
    def of(
        cls,
        texts: Sequence[PrivateText],
        padded: tuple[Tensor, Tensor],
        read: tuple[Tensor, Tensor],
        asked: tuple[Tensor, Tensor],
        mask_BN: Tensor,
    ) -> PrivateTexts:
        """The texts of a batch.

        Args:
            texts: one for each conversation.
            padded: their ids (B, S) and mask.
            read: the prompts (B, M) in which the receiver reads them itself, and their mask.
            asked: the prompts (B, Q) in which the sharer is asked itself, and their mask.
            mask_BN: of the receiver's prompts with slots, but for the last token.
        """
        (ids, mask), (read_ids, read_mask), (asked_ids, asked_mask) = padded, read, asked
        width = read_ids.shape[1] - 1  # the last token is not in the cache
        tokens, slots, opposite = [], [], []
        for row, text in enumerate(texts):
            number, end = text.num_slots, (row + 1) * ids.shape[1]
            tokens.append(torch.arange(end - number if text.handed is None else end, end))
            begin = row * mask_BN.shape[1] + int(mask_BN.shape[1] - mask_BN[row].sum()) + text.at
            slots.append(torch.arange(begin, begin + number))
            last = len(text.read_ids) - 1
            places = torch.from_numpy(text.opposite)
            in_cache = (places != UNREAD) & (places < last)
            opposite.append(torch.where(in_cache, places + (row + 1) * width - last, UNREAD))
        numbers = torch.tensor([text.num_slots for text in texts])
        rows = torch.arange(len(texts)).repeat_interleave(numbers)
        handed = [text.handed for text in texts]
        offsets = [torch.arange(n) if h is None else h.kept for n, h in zip(numbers.tolist(), handed)]
        entries = [h.entries.float() for h in handed if h is not None]
        return cls(
            ids=ids,
            mask=mask,
            tokens=torch.cat(tokens),
            slots=torch.cat(slots),
            rows=rows,
            heads=torch.tensor([text.at for text in texts]),
            numbers=numbers,
            read_ids=read_ids,
            read_mask=read_mask,
            opposite=torch.cat(opposite),
            asked_ids=asked_ids,
            asked_mask=asked_mask,
            offsets=torch.cat(offsets),
            skipped=torch.tensor([0 if h is None else h.num_tokens - len(h.kept) for h in handed]),
            is_handed=torch.tensor([h is not None for h in handed])[rows],
            handed=torch.cat(entries, dim=2) if entries else None,
            num_bytes=[None if h is None else h.num_bytes for h in handed],
        )

    @property
    def positions(self) -> Tensor:
        """Of the slots in the receiver's prompts, (T,)."""
        return self.heads[self.rows] + self.offsets
