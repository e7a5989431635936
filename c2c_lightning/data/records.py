"""Instruction records of the usual kinds as chat messages, and chats as (prompt, response) examples."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from c2c_lightning.errors import UserError
from c2c_lightning.models import Message
from c2c_lightning.models.alignment import THOUGHTS

log = logging.getLogger(__name__)
SHORT = reprlib.Repr()  # of values that may be long, or nested so deep that repr() cannot
SHORT.maxstring, SHORT.maxlist = 100, 20

ROLES = {role: role for role in ("system", "user", "assistant")}
ROLES |= {"human": "user", "gpt": "assistant", "model": "assistant"}
PAIRS = (("question", "answer"), ("prompt", "response"), ("prompt", "completion"), ("input", "output"))
Supervise = Literal["last", "every"]


class MalformedRecord(UserError):
    """A record that cannot be read as a conversation; the text says why."""


@dataclass(frozen=True)
class Example:
    """One supervised response: `messages` end with the assistant's turn to be learned."""

    messages: list[Message]
    source: str

    @property
    def prompt(self) -> list[Message]:
        return self.messages[:-1]

    @property
    def response(self) -> str:
        return self.messages[-1]["content"]

    @property
    def lengths(self) -> tuple[int, int]:
        """Characters of the prompt and of the response."""
        return sum(len(message["content"]) for message in self.prompt), len(self.response)


def to_messages(record: Any, columns: tuple[str, str] | None = None) -> list[Message]:
    """A record as chat messages.

    Args:
        record: OpenAI `messages`, ShareGPT `conversations`, Alpaca `instruction`/`input`/`output`, or
            a pair of prompt and response columns.
        columns: names of the two columns of a pair; None to recognise them.

    Raises:
        MalformedRecord: it is none of these, or has no prompt or no response.
    """
    if not isinstance(record, dict):
        raise MalformedRecord(f"it is a {type(record).__name__}, not an object")
    if columns is not None:
        missing = [column for column in columns if column not in record]
        if missing:
            raise MalformedRecord(f"no column {missing[0]!r} among {SHORT.repr(sorted(record))}")
        return _pair(record[columns[0]], record[columns[1]])
    for key in ("messages", "conversations"):
        if key in record:
            return _chat(record[key], key, record.get("system"))
    if "instruction" in record and "output" in record:
        instruction, extra = record["instruction"], record.get("input")
        for part in (instruction, extra or ""):
            if not isinstance(part, str):
                raise MalformedRecord(f"the user's text is {SHORT.repr(part)}")
        return _pair(f"{instruction}\n\n{extra}" if extra else instruction, record["output"], record.get("system"))
    for prompt, response in PAIRS:
        if prompt in record and response in record:
            return _pair(record[prompt], record[response])
    columns_there = SHORT.repr(sorted(record))
    raise MalformedRecord(
        f"columns {columns_there} are no known format; name them with data.prompt_column and data.response_column"
    )


def to_examples(messages: list[Message], source: str, supervise: Supervise) -> Iterator[Example]:
    """The assistant's last turn, or every one of its turns, each after all that went before it."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i in turns if supervise == "every" else turns[-1:]:
        yield Example(messages[: i + 1], source)


def _pair(prompt: Any, response: Any, system: Any = None) -> list[Message]:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return _chat(turns, "prompt and response", system)


def _chat(turns: Any, key: str, system: Any = None) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise MalformedRecord(f"{key} is not a list of turns")
    if system:
        turns = [{"role": "system", "content": system}, *turns]
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise MalformedRecord(f"a turn of {key} is a {type(turn).__name__}, not an object")
        speaker = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise MalformedRecord(f"a turn of {key} is by {SHORT.repr(speaker)}, none of {sorted(ROLES)}")
        if not isinstance(content, str) or not (content.strip() or speaker == "system"):
            raise MalformedRecord(f"the {ROLES[speaker]}'s text is {SHORT.repr(content)}")
        thoughts = turn.get("reasoning_content")
        if turn.get("tool_calls") or not isinstance(thoughts, str | None):
            raise MalformedRecord(f"the {ROLES[speaker]}'s message is more than text (tool_calls, reasoning_content)")
        if thoughts and thoughts.strip() and not THOUGHTS.match(content):  # as templates write them into the text
            content = f"<think>\n{thoughts.strip()}\n</think>\n\n{content.lstrip()}"
        try:
            content.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer takes
            raise MalformedRecord(f"the {ROLES[speaker]}'s text is not Unicode: {error}") from error
        messages.append({"role": ROLES[speaker], "content": content})
    first = messages[1:2] if messages[0]["role"] == "system" else messages[:1]
    if not first or first[0]["role"] != "user":
        raise MalformedRecord("it does not begin with the user")
    if all(message["role"] != "assistant" for message in messages):
        raise MalformedRecord("the assistant says nothing")
    return messages


class MalformedTally:
    """Counts records that were skipped, and stops the run when they are too many.

    Args:
        what: the data's name, for messages.
        level: at which skipped records are logged.
    """

    # A stream is judged only when enough of it was seen to tell a bad file from a bad record.
    LIMIT, ENOUGH, SHOWN = 0.01, 1000, 5

    def __init__(self, what: str, level: int = logging.WARNING):
        self.what, self.level, self.seen = what, level, 0
        self.skipped: list[tuple[str, str]] = []

    def skip(self, source: str, reason: str) -> None:
        self.skipped.append((source, reason))
        log.log(self.level, "skipped %s: %s", source, reason)
        self.check()

    def check(self, final: bool = False) -> None:
        """Raises UserError if more than 1% of the records so far were skipped."""
        if len(self.skipped) > self.LIMIT * self.seen and (final or self.seen >= self.ENOUGH):
            shown = "\n  ".join(f"{source}: {reason}" for source, reason in self.skipped[: self.SHOWN])
            raise UserError(
                f"{self.what}: {len(self.skipped)} of {self.seen} records are malformed, more than "
                f"{self.LIMIT:.0%}. The first:\n  {shown}"
            )
