"""Instruction records of the usual kinds as chat messages, and chats as (prompt, response) examples."""

from __future__ import annotations

import ast
import json
import logging
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from c2c_lightning.errors import UserError
from c2c_lightning.models import Message
from c2c_lightning.models.alignment import THOUGHTS
from c2c_lightning.models.private_text import PRIVATE, RECEIVER_ONLY

log = logging.getLogger(__name__)
SHORT = reprlib.Repr()  # of values that may be long, or nested so deep that repr() cannot
SHORT.maxstring, SHORT.maxlist = 100, 20

ROLES = {
    **{role: "system" for role in ("system", "developer")},
    **{role: "user" for role in ("user", "human")},
    **{role: "assistant" for role in ("assistant", "gpt", "model", "function_call", "tool_call")},
    **{role: "tool" for role in ("tool", "function", "observation", "ipython")},
}
CALLS = ("function_call", "tool_call")  # roles and types of parts whose text is a call
CHATS = ("messages", "conversations")
# Columns of the user's text and of the assistant's; one that may stand before the user's, and one that may follow it.
PAIRS = (
    ("instruction", "output", None, "input"),
    ("question", "answer", "context", None),
    ("question", "reference", "context", None),
    ("prompt", "response", None, None),
    ("prompt", "completion", None, None),
    ("input", "output", None, None),
    ("instruction", "response", None, "context"),
)
# What parts of a content are, by their type; where the text of a part stands.
PARTS = {
    **{kind: "content" for kind in ("text", "input_text", "output_text")},
    **{kind: "reasoning_content" for kind in ("reasoning", "thinking")},
    **{kind: "tool_calls" for kind in CALLS},
}
BESIDE_TEXT = ("tools", "tool_calls")
TEXTS = ("text", "value", "content", "thinking", "reasoning")
QUOTED = r"""(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
ARRAY = re.compile(rf"\[\s*{QUOTED}(?:\s+{QUOTED})+\s*\]")  # texts in an array, as NumPy prints them
# Lists and texts with what NumPy prints around them, and quoted texts, within which it is left alone.
AROUND = re.compile(
    rf"""({QUOTED})|\bnp\.str_\(({QUOTED})\)|\barray\((\[(?:[^\[\]'"]|{QUOTED})*\])(?:,\s*dtype=[^)]*)?\)"""
)
Supervise = Literal["last", "every"]
Context = Literal["both", "sharer", "receiver", "nobody"]  # who reads the text that a question is about
NO_ANSWER = "%s: %s questions without an answer are left out"


class MalformedRecord(UserError):
    """A record that cannot be read as a conversation; the text says why."""


class Unanswered(MalformedRecord):
    """A question that is there without an answer on purpose, as a third of SQuAD 2's are."""


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
        return sum(map(_characters, self.prompt)), _characters(self.messages[-1])


def to_messages(record: Any, columns: tuple[str, str] | None = None, context: Context = "both") -> list[Message]:
    """A record as chat messages, as chat templates take them.

    An assistant's message may have `tool_calls` beside its text, and `weight: 0` if it is not to be learned; thoughts
    stand in its text. The first message has the conversation's `tools`.

    Args:
        record: OpenAI `messages`, ShareGPT `conversations`, or one of `PAIRS`, whose parts are texts or messages; with
            it `tools`, `system` and `history`, if there are any.
        columns: names of the two columns of a pair; None to recognise them.
        context: who reads what a question or an instruction is about: the `context` of a pair, or its `input`.

    Raises:
        MalformedRecord: it is none of these, or has no prompt or no response.
    """
    if not isinstance(record, dict):
        raise MalformedRecord(f"it is a {type(record).__name__}, not an object")
    if columns is not None:
        missing = [column for column in columns if column not in record]
        if missing:
            raise MalformedRecord(f"no column {missing[0]!r} among {SHORT.repr(sorted(record))}")
        return _chat(_pair(record[columns[0]], record[columns[1]]), "prompt and response")
    key, turns = _turns(record, context)
    messages = _chat(turns, key)
    if system := record.get("system") or record.get("system_prompt"):
        said = _message("system", system)
        messages = messages if messages[0] == said else [said, *messages]
    if tools := _tools(record.get("tools")):
        messages[0] = {**messages[0], "tools": tools}
    return messages


def to_examples(messages: list[Message], source: str, supervise: Supervise) -> Iterator[Example]:
    """The assistant's last turn, or every one of its turns, each after all that went before it; none of weight 0."""
    turns = [i for i, message in enumerate(messages) if _is_learned(message)]
    messages = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    for i in turns if supervise == "every" else turns[-1:]:
        yield Example(messages[: i + 1], source)


def apart(text: str, context: Context) -> dict[str, str]:
    """What a user's message has of a text beside its content; nothing where both models read it, or nobody."""
    key = {"sharer": PRIVATE, "receiver": RECEIVER_ONLY}.get(context)
    return {key: text} if key and text.strip() else {}


def _turns(record: dict[str, Any], context: Context) -> tuple[str, Any]:
    """The record's conversation, and what it is called."""
    for key in CHATS:
        if key in record:
            return key, unwritten(record[key])
    for prompt, response, before, after in PAIRS:
        if prompt in record and response in record:
            asked, said = record[prompt], record[response]
            parts = [record.get(before), asked, record.get(after)] if isinstance(asked, str) else [asked]
            for part in parts:
                if part and not isinstance(part, str) and parts != [part]:
                    raise MalformedRecord(f"the user's text is {SHORT.repr(part)}")
            if response in ("answer", "reference") and not is_chat(said):
                said = references(said)
                if said == []:
                    raise Unanswered(f"{response} has no answer")
                said = said[0] if isinstance(said, list) else said  # any of them is right
                if _is_place(said, unwritten(record.get("choices"))):
                    raise MalformedRecord(f"{said!r} is one of its choices, which would not be read: use QuestionData")
            if isinstance(asked, str) and context == "both":
                asked = "\n\n".join(part for part in parts if part)
            turns = _pair(asked, said)
            if isinstance(asked, str):
                turns[0] |= apart(record.get(before or after) or "", context)
            history = unwritten(record.get("history")) or []
            for exchange in reversed(history) if isinstance(history, list) else [history]:
                if not isinstance(exchange, list) or len(exchange) != 2:
                    raise MalformedRecord(f"history has {SHORT.repr(exchange)}, no pair of texts")
                turns = [*_pair(*exchange), *turns]
            return "prompt and response", turns
    columns_there = SHORT.repr(sorted(record))
    raise MalformedRecord(
        f"columns {columns_there} are no known format; name them with data.prompt_column and data.response_column"
    )


def _pair(prompt: Any, response: Any) -> list[Any]:
    """The turns of two texts, or lists of turns."""
    sides = (("user", prompt), ("assistant", response))
    for role, said in sides:
        if isinstance(said, list) and any(isinstance(text, str) for text in said):
            raise MalformedRecord(f"the {role}'s text is {SHORT.repr(said)}")  # not parts of one, but several
    return [turn for role, said in sides for turn in (said if is_chat(said) else [{"role": role, "content": said}])]


def _is_place(answer: Any, choices: Any) -> bool:
    """Whether an answer is, or may be, a choice's letter or its place and not its text."""
    texts = choices.get("text") if isinstance(choices, dict) else choices
    if not isinstance(texts, list) or not texts:
        return False
    if isinstance(answer, str) and len(answer) == 1 and answer.isupper():
        return True
    return type(answer) is int or (isinstance(answer, str) and answer.isdecimal() and int(answer) < len(texts))


def is_chat(value: Any) -> bool:
    """Whether it is a list of turns."""
    return isinstance(value, list) and bool(value) and all(map(_is_turn, value))


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or {"from", "value"} <= value.keys())


def _chat(turns: Any, key: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise MalformedRecord(f"{key} is not a list of turns")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise MalformedRecord(f"a turn of {key} is a {type(turn).__name__}, not an object")
        speaker = turn.get("role", turn.get("from"))
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise MalformedRecord(f"a turn of {key} is by {SHORT.repr(speaker)}, none of {sorted(ROLES)}")
        messages.append(_message(speaker, turn.get("content", turn.get("value")), turn))
    first = next((message["role"] for message in messages if message["role"] != "system"), None)
    if first != "user":
        raise MalformedRecord("it does not begin with the user")
    if all(message["role"] != "assistant" for message in messages):
        raise MalformedRecord("the assistant says nothing")
    if not any(map(_is_learned, messages)):
        raise MalformedRecord("every turn of the assistant has weight 0")
    return messages


def _message(speaker: str, content: Any, turn: dict[str, Any] | None = None) -> Message:
    """A turn as chat templates take it: a text, and calls if there are any."""
    role, turn = ROLES[speaker], dict(turn or {})
    if isinstance(content, list):
        parts = _parts(content, role)
        content = parts.pop("content")
        turn |= parts
    elif speaker in CALLS and (calls := _calls(content)):
        content, turn["tool_calls"] = "", calls
    calls, thoughts = turn.get("tool_calls"), turn.get("reasoning_content")
    if (calls or thoughts) and (role != "assistant" or not isinstance(thoughts, str | None)):
        raise MalformedRecord(f"the {role}'s message has calls or thoughts (tool_calls, reasoning_content)")
    if content is None and calls:
        content = ""
    if not isinstance(content, str) or not (content.strip() or role in ("system", "tool") or calls):
        raise MalformedRecord(f"the {role}'s text is {SHORT.repr(content)}")
    if thoughts and thoughts.strip() and not THOUGHTS.match(content):  # as templates write them into the text
        content = f"<think>\n{thoughts.strip()}\n</think>\n\n{content.lstrip()}"
    message: Message = {"role": role, "content": content}
    if calls:
        message["tool_calls"] = _calls(calls)
    if role == "tool":
        message |= {key: turn[key] for key in ("name", "tool_call_id") if turn.get(key)}
    if turn.get("weight") == 0:
        message["weight"] = 0
    for key in (PRIVATE, RECEIVER_ONLY):
        if (text := turn.get(key)) is not None:
            if role != "user" or not isinstance(text, str):
                raise MalformedRecord(f"the {role}'s message has {SHORT.repr(text)} as {key}; a user's may have a text")
            message[key] = text
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer takes
        raise MalformedRecord(f"the {role}'s text is not Unicode: {error}") from error
    return message


def _parts(parts: list[Any], role: str) -> dict[str, Any]:
    """What a content that is a list of parts has: text, thoughts and calls."""
    found: dict[str, Any] = {"content": ""}
    for part in parts:
        kind = PARTS.get(str(part.get("type"))) if isinstance(part, dict) else "content"
        said = next((part[key] for key in TEXTS if key in part), None) if isinstance(part, dict) else part
        calls = _calls(said) if kind == "tool_calls" else []
        if kind is None or not isinstance(said, str) or (kind == "tool_calls" and not calls):
            raise MalformedRecord(f"the {role}'s text has {SHORT.repr(part)} as a part")
        found[kind] = found.get(kind, [] if calls else "") + (calls or said)
    return found


def _calls(given: Any) -> list[dict[str, Any]]:
    """Calls as chat templates take them, with arguments as an object; none if the text is not JSON of one."""
    calls = unwritten(given)
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            if not isinstance(given, str):
                raise MalformedRecord(f"the assistant calls {SHORT.repr(call)}, which has no name")
            return []
        arguments = unwritten(function.get("arguments", function.get("parameters")))
        beside = {"id": call["id"]} if call.get("id") else {}
        named = {"name": function["name"], "arguments": {} if arguments in (None, "") else arguments}
        found.append({**beside, "type": "function", "function": named})
    return found


def _tools(given: Any) -> list[dict[str, Any]]:
    """The `tools` column, JSON or what it stands for, as chat templates take it."""
    tools = unwritten(given) or []
    tools = [unwritten(tool) for tool in tools] if isinstance(tools, list) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise MalformedRecord(f"its tools are {SHORT.repr(given)}, no list of objects")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _is_learned(message: Message) -> bool:
    return message["role"] == "assistant" and "weight" not in message


def _characters(message: Message) -> int:
    texts = sum(len(message.get(key) or "") for key in ("content", PRIVATE, RECEIVER_ONLY))
    return texts + sum(len(json.dumps(message[key])) for key in BESIDE_TEXT if key in message)


def unwritten(value: Any) -> Any:
    """A list or object that stands as text in a table's cell; anything else as it is.

    It is read as JSON, or as Python and NumPy print it.
    """
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        for read in (json.loads, _printed):
            try:
                return read(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return value


def _printed(text: str) -> Any:
    if ARRAY.fullmatch(text):  # to Python texts without commas between them are one
        return [ast.literal_eval(quoted) for quoted in re.findall(QUOTED, text)]
    return ast.literal_eval(AROUND.sub(lambda found: found[found.lastindex], text))


def references(value: Any) -> Any:
    """A list of texts that stands as text in a table's cell; anything else, such as the text "[1, 2]", as it is."""
    read = unwritten(value)
    return read if isinstance(read, list) and all(isinstance(text, str) for text in read) else value


class MalformedTally:
    """Counts records that were skipped, and stops the run when too many of them are malformed.

    Args:
        what: the data's name, for messages.
        level: at which skipped records are logged.
    """

    # A stream is judged only when enough of it was seen to tell a bad file from a bad record.
    LIMIT, ENOUGH, SHOWN = 0.01, 1000, 5

    def __init__(self, what: str, level: int = logging.WARNING):
        self.what, self.level, self.seen, self.unanswered = what, level, 0, 0
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
