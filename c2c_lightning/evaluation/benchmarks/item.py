"""One question of a benchmark, what grading an answer to it says, and what makes a question wrong."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BeforeValidator

from c2c_lightning.data.records import MalformedRecord

LETTERS = string.ascii_uppercase
# A column of text in which numbers count as the text that they are written as.
TextOrNumber = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value)]


@dataclass(frozen=True)
class Item:
    """A question with what counts as its answer."""

    id: str  # unique in its benchmark
    question: str  # the question alone, without choices, context or instructions
    # What is right: letters where there are choices, otherwise references, any of which will do.
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()  # texts of the lettered choices, in the order of their letters; none if it is open
    subject: str = ""  # what accuracy is broken down by; empty if the benchmark has no subjects
    context: str = ""  # a text that the question is about

    @property
    def letters(self) -> str:
        """The letters of its choices."""
        return LETTERS[: len(self.choices)]


@dataclass(frozen=True)
class Grade:
    """What was read out of a response, None if nothing could be, and its score in [0, 1]; where there are several, by name."""

    extracted: str | None
    score: float
    metrics: Mapping[str, float] = field(default_factory=dict)


def check_choices(choices: tuple[str, ...]) -> None:
    """Raises MalformedRecord if there are too few choices, or more than letters."""
    if not 2 <= len(choices) <= len(LETTERS):
        raise MalformedRecord(f"it has {len(choices)} choices; give from 2 to {len(LETTERS)}")


def check_item(item: Item) -> None:
    """Raises MalformedRecord if nobody could be asked this, or no answer could be right."""
    if not item.question.strip():
        raise MalformedRecord("the question is empty; write one, or take the record out")
    if item.choices:
        check_choices(item.choices)
    if not any(answer.strip() for answer in item.answers):
        raise MalformedRecord("it has no answer; give one, or take the record out")
    strangers = [answer for answer in item.answers if item.choices and answer not in item.letters]
    if strangers:
        raise MalformedRecord(f"answer {strangers[0]!r} is not among the choices {', '.join(item.letters)}; correct it")
    try:
        "".join((item.id, item.question, item.subject, item.context, *item.answers, *item.choices)).encode()
    except UnicodeEncodeError as error:
        raise MalformedRecord(
            "it holds half a surrogate pair (such as \\ud800), which is no character; take it out"
        ) from error
