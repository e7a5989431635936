"""How conversations are put to the models: chat templates, turns that a template refuses, and today's date."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase as Tokenizer

from c2c_lightning.errors import UserError
from c2c_lightning.files import PROJECT, read_bytes

Message = dict[str, Any]
"""`role` and `content`; an assistant's may have `tool_calls`, and the first of a conversation has its `tools`. One user's
may have a text that is read before its content: `private`, which the first sharer alone reads and hands over, or
`receiver_only`, which the receiver alone reads, with no sharer's token opposite."""
TOOLS = (
    "You may call these functions:\n<tools>\n{}\n</tools>\n\nA call is an object with name and arguments:\n"
    '<tool_call>\n{{"name": ..., "arguments": ...}}\n</tool_call>'
)
TODAY = "strftime_now"  # what transformers gives templates to ask for today's date
ASKS = re.compile(TODAY + r"""\(\s*(["'])([^"']*)\1\s*\)""")
PLAIN = (
    "{% set names = {'user': 'Question', 'assistant': 'Answer'} %}"
    "{% for m in messages %}{{ '' if m.role == 'system' else names.get(m.role, m.role | capitalize) + ': ' }}"
    "{{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)
"""For base models: turns as the questions and answers that they know from texts, each answer ended by eos_token.

No space stands behind the last word: most tokenizers have it in the token that comes next.
"""
BOS = "{{ bos_token }}"


@dataclass
class ChatConfig:
    """How conversations are put to the models.

    Attributes:
        receiver: the receiver's chat template: `plain`, a file, or the template's text; None for the model's own.
        sharers: the same for each sharer; None for their own.
        turns: what is done with a conversation that a template refuses, such as one with a system turn or with two
            turns of the user in a row: `refuse` leaves it out; `merge` tries again with turns of one role in a row
            made one, and then with the system's words put before the user's.
        date: that templates take for today's, YYYY-MM-DD; None for the day on which the fuser's training begins,
            if a template asks for it.
    """

    receiver: str | None = None
    sharers: list[str | None] | None = None
    turns: Literal["refuse", "merge"] = "refuse"
    date: str | None = None

    def __post_init__(self) -> None:
        if self.turns not in ("refuse", "merge"):
            raise UserError(f"model.chat.turns is {self.turns!r}: give refuse or merge.")
        if self.date is not None:
            try:
                self.date = date.fromisoformat(str(self.date)).isoformat()
            except ValueError as error:
                raise UserError(f"model.chat.date is {self.date!r}: give a day as YYYY-MM-DD.") from error

    def read(self, num_sharers: int) -> ChatConfig:
        """With the text of every template that is a file, so that it stays what it is.

        Raises:
            UserError: a file cannot be read, or there are more or fewer templates than sharers.
        """
        if self.sharers is not None and len(self.sharers) != num_sharers:
            raise UserError(
                f"model.chat.sharers has {len(self.sharers)} templates for {num_sharers} sharers: give one for each, null "
                "for a model's own."
            )
        sharers = self.sharers and [read_template(given, f"sharers.{i}") for i, given in enumerate(self.sharers)]
        return replace(self, receiver=read_template(self.receiver, "receiver"), sharers=sharers)

    def of(self, num_sharers: int) -> list[str | None]:
        """The templates of the receiver and then of every sharer."""
        return [self.receiver, *(self.sharers or [None] * num_sharers)]

    def kept(self, tokenizers: list[Tokenizer]) -> ChatConfig:
        """What a fuser keeps, so that its prompts stay what they are: templates as text, and a date if one asks for it.

        Args:
            tokenizers: of the receiver and the sharers, with the templates that are used.
        """
        used = [tokenizer.get_chat_template() for tokenizer in tokenizers]
        receiver, *sharers = [given and text for given, text in zip(self.of(len(tokenizers) - 1), used)]
        today = date.today().isoformat() if any(TODAY in text for text in used) else None
        return replace(self, receiver=receiver, sharers=self.sharers and sharers, date=self.date or today)


def pinned(template: str, day: str) -> str:
    """A template in which today is a given day.

    transformers hands templates nothing but plain values, so no function could take the place of its own.

    Raises:
        UserError: it makes the pattern of the date as it goes.
    """
    fixed = ASKS.sub(lambda found: json.dumps(datetime.fromisoformat(day).strftime(found[2])), template)
    if f"{TODAY}(" in fixed:
        raise UserError(
            f"its chat template asks for the date ({TODAY}) by a pattern that it makes as it goes, so that its prompts "
            "would change from day to day: give another as model.chat.receiver or in model.chat.sharers."
        )
    return fixed


def read_template(given: str | None, key: str) -> str | None:
    """A chat template's text.

    Args:
        given: `plain`, which is left as it is, a file, or the text itself.
        key: under which it was given, for the message.

    Raises:
        UserError: it is none of these.
    """
    if given is None or given == "plain" or "{{" in given or "{%" in given:
        return given
    for file in (Path(given).expanduser(), PROJECT / given):
        if file.is_file():
            try:
                return read_bytes(file, "chat template").decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"model.chat.{key}: chat template {file} is no text in UTF-8.") from error
    raise UserError(f"model.chat.{key} is {given!r}: give plain, or a file that is there.")


def plain(tokenizer: Tokenizer) -> str:
    """The built-in template, with the token that the tokenizer would put at the beginning of a text."""
    begins = tokenizer("").input_ids[:1]
    return (BOS if begins and begins[0] == tokenizer.bos_token_id else "") + PLAIN


def merged(messages: list[Message]) -> Iterator[list[Message]]:
    """The conversation with fewer turns or without tools, the least changed first."""
    yield from _with_fewer_turns(messages)
    if has_tools(messages):
        written = as_text(messages)
        yield written
        yield from _with_fewer_turns(written)


def has_tools(messages: list[Message]) -> bool:
    return any(message["role"] == "tool" or message.keys() & {"tools", "tool_calls"} for message in messages)


def as_text(messages: list[Message]) -> list[Message]:
    """The conversation with tools, calls and results written into the texts, as Qwen's templates write them."""
    turns: list[Message] = []
    for message in messages:
        role, text = message["role"], message["content"]
        if role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
        for call in message.get("tool_calls", ()):
            written = f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
            text = f"{text}\n{written}" if text.strip() else written
        turns.append({"role": role, "content": text})
    if tools := messages[0].get("tools"):
        listed = TOOLS.format("\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        system = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
        turns.insert(0, {"role": "system", "content": f"{system}\n\n{listed}".strip()})
    return turns


def marked(messages: list[Message], mark: str) -> tuple[list[tuple[str, str]], list[Message]]:
    """The texts of a conversation that templates say as they are, and the conversation with marks in their places.

    They are the contents, the names and descriptions of tools, and the names and texts of calls, each with the role
    that it belongs to, in the order in which templates say them. Blank texts get no mark: a template may pass over them.

    Args:
        messages: the conversation.
        mark: what becomes a mark by `format` with the text's place.
    """
    texts: list[tuple[str, str]] = []

    def put(role: str, text: str) -> str:
        texts.append((role, text))
        return mark.format(len(texts) - 1) if text.strip() else text

    def put_within(role: str, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: put_within(role, v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [put_within(role, v, key) for v in value]
        # Of tools these alone: templates look at the types of parameters.
        is_text = isinstance(value, str) and (role == "call" or key in ("name", "description"))
        return put(role, value) if is_text else value

    others = []
    for message in messages:
        other, calls, said = dict(message), message.get("tool_calls", []), message["content"]
        # Before calls a template may say nothing in another way than something.
        is_said = not calls or said.rpartition("</think>")[2].strip()
        for key in ("content", "tools") if message["role"] == "system" else ("tools", "content"):
            if key == "content" and is_said:
                other[key] = put(message["role"], said)
            elif key in message and key == "tools":
                other[key] = put_within("tools", message[key])
        if calls:
            other["tool_calls"] = [{**call, "function": put_within("call", call["function"])} for call in calls]
        others.append(other)
    return texts, others


def _with_fewer_turns(messages: list[Message]) -> Iterator[list[Message]]:
    """Turns of a role in a row as one, then the system's with the user's; those that hold more than text stay."""
    in_a_row = _joined(messages)
    if len(in_a_row) < len(messages):
        yield in_a_row
    turns = [dict(message) for message in messages]
    for system, following in pairwise(turns):
        if system["role"] == "system" and following["role"] == "user" and _is_text(system) and _is_text(following):
            following["content"] = f"{system['content']}\n\n{following['content']}".strip()
            system["role"] = ""
    if all(turn["role"] for turn in turns):
        return
    yield _joined([turn for turn in turns if turn["role"]])


def _joined(messages: list[Message]) -> list[Message]:
    joined: list[Message] = []
    for (role, is_text), turns in groupby(messages, key=lambda message: (message["role"], _is_text(message))):
        turns = list(turns)
        text = "\n\n".join(turn["content"] for turn in turns) if is_text else ""
        joined += [{"role": role, "content": text}] if is_text else turns
    return joined


def _is_text(message: Message) -> bool:
    return message.keys() == {"role", "content"} and isinstance(message["content"], str)
