"""Token alignment: which sharer token stands opposite each receiver token.

`spans`, the default: each model reads the messages through its own chat template and its own natural
tokenization, and tokens are matched by the characters that they have read. Opposite a receiver token
stands the newest sharer token that has read no further in the message, so the sharer never reads
mangled text and the fuser never looks ahead. In a template section, which says nothing of the
message, the j-th token stands opposite the j-th, or the section's last.

`published`: the sharer is made to read the receiver's tokens one by one, each decoded and encoded
again, as in the C2C paper (arXiv 2510.03215). For comparison.
"""

from __future__ import annotations

import inspect
import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase as Tokenizer

from c2c_lightning.errors import UserError
from c2c_lightning.mapper import Handed
from c2c_lightning.models.chat import ChatConfig, Message, as_text, has_tools, marked, merged, pinned
from c2c_lightning.models.private_text import BETWEEN, PRIVATE, RECEIVER_ONLY, PrivateText, reads, text_apart
from c2c_lightning.models.read_text import UNALIGNED, ReadText, Span, match, read, reread
from c2c_lightning.models.rendering import TemplateRunsOn, rendered

Alignment = Literal["spans", "published"]
MARK = "\ue000{}\ue001"
# Of a reasoning model's message: the thoughts, which its template may leave out of turns that are past.
THOUGHTS = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
# What `apply_chat_template` is given here, or takes for itself; `tools` and `documents` go on to the template.
NOT_FOR_TEMPLATES = {"messages", *inspect.signature(Tokenizer.apply_chat_template).parameters} - {
    "self",
    "kwargs",
    "tools",
    "documents",
}


@dataclass
class AlignedPrompt:
    """One conversation, ready for the receiver and every sharer."""

    receiver_ids: list[int]  # N token ids, the generation prompt included
    sharer_ids: list[list[int]]  # for each sharer
    # For each sharer N - 1 indices into its ids (the last prompt token is not fused), or UNALIGNED.
    positions: list[np.ndarray]
    text: str  # the prompt as the receiver's template renders it
    merged: list[Message] | None = None  # the messages as they were read, if turns had to be merged
    private: PrivateText | None = None  # what the first sharer alone reads; its slots are among the receiver's ids

    @property
    def own_ids(self) -> list[int]:
        """The receiver's ids without slots."""
        if self.private is None:
            return self.receiver_ids
        at = self.private.at
        return self.receiver_ids[:at] + self.receiver_ids[at + self.private.num_slots :]


class Aligner:
    """Reads conversations for a receiver and its sharers.

    Args:
        receiver: the receiver's tokenizer.
        sharers: the sharers' tokenizers.
        alignment: `spans` or `published`.
        template_kwargs: handed to every chat template.
        chat: what is done with turns that a template refuses, and which day it is; the tokenizers have its templates.
    """

    def __init__(
        self,
        receiver: Tokenizer,
        sharers: list[Tokenizer],
        alignment: Alignment = "spans",
        template_kwargs: dict[str, Any] | None = None,
        chat: ChatConfig | None = None,
    ):
        if alignment not in ("spans", "published"):
            raise UserError(f"model.alignment is {alignment!r}: give spans or published.")
        taken = sorted(NOT_FOR_TEMPLATES.intersection(template_kwargs or ()))
        if taken:
            raise UserError(
                f"model.template_kwargs has {taken[0]}, which is not the chat template's to decide: leave it out."
            )
        self.receiver, self.sharers, self.alignment = receiver, sharers, alignment
        self._templates = [tokenizer.chat_template for tokenizer in (receiver, *sharers)]
        self.chat = ChatConfig() if chat is None else chat
        if self.chat.date is not None:
            self.pin(self.chat.date)
        # Qwen3's template opens an empty think block with it; templates that do not know it ignore it.
        self.template_kwargs = {"enable_thinking": False} if template_kwargs is None else template_kwargs

    def pin(self, day: str) -> None:
        """Sets the day that chat templates take for today."""
        self.chat = replace(self.chat, date=day)
        for tokenizer, template in zip((self.receiver, *self.sharers), self._templates):
            tokenizer.chat_template = pinned(template, day)

    @property
    def pad_ids(self) -> list[int]:
        """Padding ids of the receiver, then of every sharer."""
        return [tokenizer.pad_token_id for tokenizer in (self.receiver, *self.sharers)]

    def prompt(self, messages: list[Message]) -> AlignedPrompt:
        """Aligns a conversation that ends before the response.

        Args:
            messages: a user's may have a text beside its content that one of the models alone reads; see `Message`.

        Raises:
            UserError: a chat template refuses it, also with turns merged if they may be; or says it otherwise; or
                there are several texts that one model alone reads.
        """
        own, shared, at = reads(messages, RECEIVER_ONLY), reads(messages), text_apart(messages)
        apart = None if at is None else (at, messages[at])
        try:
            return self._aligned(own, shared, apart)
        except UserError:
            for fewer, theirs in zip(merged(own), merged(shared)) if self.chat.turns == "merge" else ():
                if at is not None:
                    said = own[at]["content"].strip()
                    turns = [i for i, turn in enumerate(fewer) if turn["role"] == "user" and said in turn["content"]]
                    apart = (turns[-1], messages[at])
                with suppress(UserError):
                    return replace(self._aligned(fewer, theirs, apart), merged=fewer)
            raise

    def _aligned(
        self, own: list[Message], shared: list[Message], apart: tuple[int, Message] | None = None
    ) -> AlignedPrompt:
        """Aligns a conversation as the receiver reads it with the same as the sharers do.

        Args:
            own: the receiver's.
            shared: the sharers'.
            apart: the place of the turn with a text that one model alone reads, and its message; None if there is none.
        """
        text, spans = self._locate_contents(self.receiver, own)
        receiver = common = read(self.receiver, text, spans)
        unshared = np.zeros(len(receiver.ids), dtype=bool)
        section = 0 if apart is None else 2 * len(marked(own[: apart[0] + 1], MARK)[0]) - 1
        alone = (apart[1].get(RECEIVER_ONLY) or "") if apart else ""
        if alone.strip():
            if self.alignment == "published":
                raise UserError(
                    "model.alignment published makes sharers read what the receiver alone should: give spans"
                )
            [message] = reads([apart[1]], RECEIVER_ONLY)
            start = own[apart[0]]["content"].rindex(message["content"].strip())
            common, unshared = receiver.without(section, start, start + len(alone.lstrip()) + len(BETWEEN))
        sharer_ids, positions = [], []
        for tokenizer in self.sharers:
            sharer_text, sharer_spans = self._locate_contents(tokenizer, shared)
            sharer = read(tokenizer, sharer_text, sharer_spans)
            if self.alignment == "published":
                sharer = reread(self.receiver, receiver, tokenizer, sharer)
            opposite = match(common, sharer, by_characters=self.alignment == "spans")
            sharer_ids.append(sharer.ids)
            positions.append(np.where(unshared, UNALIGNED, opposite)[:-1])
        prompt = AlignedPrompt(receiver.ids, sharer_ids, positions, text)
        if apart and not alone.strip():
            return self._with_slots(prompt, receiver, section, own, apart[0], apart[1][PRIVATE])
        return prompt

    def _with_slots(
        self, prompt: AlignedPrompt, own: ReadText, section: int, messages: list[Message], i: int, text: str | Handed
    ) -> AlignedPrompt:
        """A prompt with slots for a private text before the content of message i, which is this section of it."""
        if isinstance(text, Handed):
            private = PrivateText.none(prompt.receiver_ids, *prompt.sharer_ids[:1])
            private = replace(private, at=int(np.searchsorted(own.section, section)), handed=text)
        else:
            private = self._private_text(own, section, messages, i, text)
        slots = [self.receiver.pad_token_id] * private.num_slots
        receiver_ids = prompt.receiver_ids[: private.at] + slots + prompt.receiver_ids[private.at :]
        unfused = np.full(len(slots), UNALIGNED)
        positions = [np.insert(opposite, private.at, unfused) for opposite in prompt.positions]
        return replace(prompt, receiver_ids=receiver_ids, positions=positions, private=private)

    def _private_text(self, own: ReadText, section: int, messages: list[Message], i: int, text: str) -> PrivateText:
        if not self.sharers:
            raise UserError("a text was given that a sharer reads, but only the receiver is loaded: give a Cached one.")
        tokenizer = self.sharers[0]
        itself = reads([*messages[:i], {**messages[i], PRIVATE: text}, *messages[i + 1 :]], PRIVATE)
        asked = self._rendered(tokenizer, itself, add_generation_prompt=True)
        return PrivateText.of(
            begin=[token for token in tokenizer("").input_ids[:1] if token == tokenizer.bos_token_id],
            text=read(tokenizer, text, [Span(0, len(text))]),
            own=own,
            itself=read(self.receiver, *self._locate_contents(self.receiver, itself)),
            section=section,
            asked_ids=tokenizer(asked, add_special_tokens=False).input_ids,
        )

    def response_ids(self, messages: list[Message], prompt: AlignedPrompt) -> list[int]:
        """The receiver's ids of the last message, an assistant's, up to and including its end of turn.

        Special tokens in the message are kept, but for one that would end the turn before its end.

        Raises:
            UserError: the receiver's chat template changes the message, or refuses the conversation; the message
                thinks where the prompt says that there is nothing to think; or an end of turn stands in it.
        """
        tokenizer, messages = self.receiver, reads(messages, RECEIVER_ONLY)
        before, said = prompt.merged or messages[:-1], messages[-1]
        if has_tools(messages[:-1]) and not has_tools(before):
            [said] = as_text([said])
        try:
            text, num_said = self._response([*before, said], prompt)
        except UserError:
            if self.chat.turns != "merge" or not has_tools([said]):
                raise
            prompt.merged = before
            text, num_said = self._response([*before, *as_text([said])], prompt)
        ids, ends = self.ids_after(prompt, text)
        special = set(tokenizer.all_special_ids)
        end = next((i for i, (token, at) in enumerate(zip(ids, ends)) if at > num_said and token in special), None)
        response = [*ids, tokenizer.eos_token_id] if end is None else ids[: end + 1]
        early = {tokenizer.eos_token_id, response[-1]}.intersection(response[:-1])
        if early:
            token = tokenizer.convert_ids_to_tokens(early.pop())
            raise UserError(f"the assistant's message has {token!r} in its text, a token that ends a turn")
        return response

    def _response(self, messages: list[Message], prompt: AlignedPrompt) -> tuple[str, int]:
        """What follows the prompt: the message and its end of turn, and how many characters the message has of it."""
        said = messages[-1]["content"]
        thoughts, asked = THOUGHTS.match(said), prompt.text.rstrip()
        if thoughts and asked.endswith("</think>"):
            if thoughts.group(1).strip():
                raise UserError(
                    "the assistant's message begins with a <think> block, but the prompt has an empty one already: "
                    "give model.template_kwargs {enable_thinking: true}, or take the blocks out of the data"
                )
            said = said[thoughts.end() :]
        opened = thoughts is not None and asked.endswith("<think>")
        if opened:
            said = said[thoughts.start(1) :].lstrip()
        full = self._rendered(self.receiver, messages, add_generation_prompt=False)
        plain = [*messages[:-1], {"role": "assistant", "content": MARK.format(0)}]
        head, found, tail = self._rendered(self.receiver, plain, add_generation_prompt=False).rpartition(MARK.format(0))
        text = full[len(prompt.text) :]
        # White space may change around thoughts, and nothing else.
        whole = "".join(said.split()) in "".join(text.split())
        calls = [t for role, t in marked(messages[-1:], MARK)[0] if role == "call"]
        called = all(call in text or in_json(call) in text for call in calls)
        if found and full.startswith(prompt.text) and text.endswith(tail) and whole and called:
            return text, len(text) - len(tail)
        if has_tools(messages[-1:]):
            raise UserError(f"the chat template of {self.receiver.name_or_path!r} leaves out the assistant's calls")
        if found and opened:  # templates that open a block leave it out of turns that are past
            return said + tail, len(said)
        fitting = [s for s in stripped(said) if found and full.endswith(s + tail)]
        # What stands before may differ with the content: a think block in it, say.
        kept = min(fitting, key=lambda s: full != head + s + tail, default=None)
        if kept is None:
            raise UserError(f"the chat template of {self.receiver.name_or_path!r} changes the assistant's message")
        return kept + tail, len(kept)

    def ids_after(self, prompt: AlignedPrompt, text: str) -> tuple[list[int], list[int]]:
        """The receiver's ids of a text that goes on from a prompt, and how much of it has been read by the end of each."""
        whole = self.receiver(prompt.text + text, add_special_tokens=False, return_offsets_mapping=True)
        start = len(prompt.own_ids)
        if whole.input_ids[:start] == prompt.own_ids:
            ends = [end - len(prompt.text) for _, end in whole.offset_mapping]
            return whole.input_ids[start:], ends[start:]
        # Prompt and text merge in a token; generation starts from the prompt's own tokens.
        alone = self.receiver(text, add_special_tokens=False, return_offsets_mapping=True)
        return alone.input_ids, [end for _, end in alone.offset_mapping]

    def render(self, tokenizer: Tokenizer, messages: list[Message], add_generation_prompt: bool = True) -> str:
        """A conversation as text, as the tokenizer's chat template has it.

        Raises:
            UserError: the template refuses the conversation, also with turns merged if they may be.
        """
        messages = reads(messages, *([RECEIVER_ONLY] if tokenizer is self.receiver else []))
        try:
            return self._rendered(tokenizer, messages, add_generation_prompt)
        except UserError:
            for fewer in merged(messages) if self.chat.turns == "merge" else ():
                with suppress(UserError):
                    return self._rendered(tokenizer, fewer, add_generation_prompt)
            raise

    def _rendered(self, tokenizer: Tokenizer, messages: list[Message], add_generation_prompt: bool) -> str:
        tools = {"tools": tools} if (tools := messages[0].get("tools")) else {}
        turns = [{key: value for key, value in message.items() if key != "tools"} for message in messages]
        try:
            return rendered(
                tokenizer, turns, add_generation_prompt=add_generation_prompt, **self.template_kwargs | tools
            )
        except TemplateRunsOn:
            raise
        except Exception as error:  # jinja2 and the template's own raise_exception
            roles = [message["role"] for message in messages]
            raise UserError(f"the chat template of {tokenizer.name_or_path!r} refuses {roles}: {error}") from error

    def _locate_contents(self, tokenizer: Tokenizer, messages: list[Message]) -> tuple[str, list[Span]]:
        """The prompt's text, and where in it the texts of `marked` stand, the messages' contents among them."""
        text = self._rendered(tokenizer, messages, add_generation_prompt=True)
        # The template rendered around marks shows where texts go, also when their words stand in the template itself.
        texts, others = marked(messages, MARK)
        marks = [i for i, (_, said) in enumerate(texts) if said.strip()]
        frame = self._rendered(tokenizer, others, add_generation_prompt=True)
        first, *after_marks = re.split(MARK.format(r"(\d+)"), frame)
        found, frame_after = [int(i) for i in after_marks[::2]], after_marks[1::2]
        if found != marks:
            if {texts[i][0] for i in set(marks).difference(found)} & {"tools", "call"}:
                raise UserError(
                    f"the chat template of {tokenizer.name_or_path!r} leaves out tools or calls, which model.chat.turns "
                    "merge writes into the text"
                )
            raise UserError(
                f"the chat template of {tokenizer.name_or_path!r} leaves out, repeats or moves a message: "
                f"of {[role for role, _ in texts]} it renders those at {found}"
            )
        at, spans = len(first), {}
        for i, after in zip(found, frame_after):
            role, content = texts[i]
            thoughts = THOUGHTS.match(content) if role == "assistant" else None
            # A template may leave out what was thought in a turn that is past.
            leads = [0] if thoughts is None else [0, content.index("</think>") + len("</think>")]
            ways = [(s, lead + content[lead:].index(s)) for lead in leads for s in stripped(content[lead:])]
            ways += [(in_json(content), 0)] if role in ("tools", "call") else []
            said, skipped = next(((s, n) for s, n in ways if text.startswith(s + after, at)), (None, 0))
            if said is None:
                raise UserError(
                    f"the chat template of {tokenizer.name_or_path!r} changes the text of the "
                    f"{role}'s message, or what stands around it by what it says"
                )
            spans[i] = Span(at, at + len(said), skipped)
            at += len(said) + len(after)
        blank = Span(0, 0)
        for i in range(len(texts)):
            blank = spans.setdefault(i, Span(blank.end, blank.end))
        return text, [spans[i] for i in range(len(texts))]


def in_json(text: str) -> str:
    """A text as it stands between the quotes of JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def stripped(content: str) -> list[str]:
    """A message's content as templates leave it, who may take white space from its ends."""
    ways = [(way, characters) for characters in (None, "\n") for way in (str.strip, str.lstrip, str.rstrip)]
    return [content, *(way(content, characters) for way, characters in ways)]
