"""One question of a benchmark, and what grading an answer to it says."""

from __future__ import annotations

import string
from dataclasses import dataclass

LETTERS = string.ascii_uppercase[:10]


@dataclass(frozen=True)
class Item:
    """A question with what counts as its answer.

    Attributes:
        id: unique in its benchmark.
        question: the question alone, without choices, context or instructions.
        answers: what is right: letters where there are choices, otherwise references, any of which will do.
        choices: texts of the lettered choices, in the order of their letters; empty for an open question.
        subject: what accuracy is broken down by; empty if the benchmark has no subjects.
        context: a text that the question is about.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    subject: str = ""
    context: str = ""

    @property
    def letters(self) -> str:
        """The letters of its choices."""
        return LETTERS[: len(self.choices)]


@dataclass(frozen=True)
class Grade:
    """What was read out of a response, None if nothing could be, and its score in [0, 1]."""

    extracted: str | None
    score: float
