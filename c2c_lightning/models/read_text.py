"""Prompts as a model reads them, and which of a sharer's tokens stands opposite each of the receiver's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase as Tokenizer

UNALIGNED = -1
CHARACTER = 840  # divisible by 1 to 8, the number of tokens that a character may be spread over


@dataclass
class Span:
    """Where in a prompt a message's content stands, without its first `skipped` characters."""

    start: int
    end: int
    skipped: int = 0


@dataclass
class ReadText:
    """A prompt as one model reads it.

    `sections` alternate: template, content, template, content, ..., template. `section` and `ends`
    say for every token in which of them its last character stands, and how much of it is read by
    then, in CHARACTER-ths of a character; of a content, counted in the message itself.
    """

    ids: list[int]
    section: np.ndarray
    ends: np.ndarray

    def without(self, section: int, start: int, stop: int) -> tuple[ReadText, np.ndarray]:
        """The same, counted without these characters of a section; and which of its tokens end among them."""
        start, stop, inside = start * CHARACTER, stop * CHARACTER, self.section == section
        among = inside & (self.ends > start) & (self.ends <= stop)
        ends = np.where(inside & (self.ends > start), np.maximum(self.ends - (stop - start), start), self.ends)
        return replace(self, ends=ends), among


def read(tokenizer: Tokenizer, text: str, spans: list[Span]) -> ReadText:
    """Tokenizes `text` as the model naturally would and places every token in its section."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts, ends = np.array(encoded.offset_mapping).T
    # A token may cover no characters (a prefix space that was put in), or end before its
    # predecessor: what has been read never shrinks.
    ends = np.maximum.accumulate(ends)
    bounds = np.array([0, *(edge for span in spans for edge in (span.start, span.end)), len(text)])
    # A token whose last character is the last of a section belongs to that section; empty sections
    # own nothing.
    section = np.searchsorted(bounds[1:], ends, side="left")
    origin = bounds[:-1].copy()
    origin[1::2] -= [span.skipped for span in spans]
    # Tokens that share a character, as bytes of an emoji do, have each read their part of it.
    shares = (ends[1:] == ends[:-1]) & (starts[1:] < ends[1:])
    group = np.cumsum(np.r_[True, ~shares]) - 1
    size = np.bincount(group)[group]
    still_to_come = np.searchsorted(group, group, side="right") - 1 - np.arange(len(group))
    return ReadText(
        encoded.input_ids, section, (ends - origin[section]) * CHARACTER - CHARACTER * still_to_come // size
    )


def match(receiver: ReadText, sharer: ReadText, by_characters: bool = True) -> np.ndarray:
    """For every receiver token the position of the sharer token opposite, or UNALIGNED.

    In template sections, and everywhere if not `by_characters`, the j-th token of a section stands
    opposite the j-th or the last; a section that the sharer lacks, opposite the newest token before it.
    """
    opposite = np.empty(len(receiver.ids), dtype=np.int64)
    for s in np.unique(receiver.section):
        mine = np.flatnonzero(receiver.section == s)
        first, stop = np.searchsorted(sharer.section, [s, s + 1])
        if s % 2 and by_characters:
            num_read = np.searchsorted(sharer.ends[first:stop], receiver.ends[mine], side="right")
        else:
            num_read = np.minimum(np.arange(1, len(mine) + 1), stop - first)
        opposite[mine] = first + num_read - 1
    return opposite


def reread(receiver_tokenizer: Tokenizer, receiver: ReadText, tokenizer: Tokenizer, sharer: ReadText) -> ReadText:
    """The sharer's template around the receiver's content tokens, each decoded and encoded again."""
    ids, section = [], []
    for s in range(int(max(receiver.section.max(), sharer.section.max())) + 1):
        if s % 2:
            tokens = [receiver.ids[i] for i in np.flatnonzero(receiver.section == s)]
            part = [reencode(receiver_tokenizer, token, tokenizer) for token in tokens]
        else:
            part = [sharer.ids[i] for i in np.flatnonzero(sharer.section == s)]
        ids += part
        section += [s] * len(part)
    return ReadText(ids, np.array(section), np.arange(len(ids)))


def reencode(receiver_tokenizer: Tokenizer, token: int, tokenizer: Tokenizer) -> int:
    """The sharer's token for a receiver's: of several, the one that covers most characters."""
    text = receiver_tokenizer.decode([token], clean_up_tokenization_spaces=False)
    candidates = tokenizer(text, add_special_tokens=False).input_ids
    if not candidates:
        return tokenizer.pad_token_id
    return max(candidates, key=lambda c: len(tokenizer.decode([c], clean_up_tokenization_spaces=False)))
