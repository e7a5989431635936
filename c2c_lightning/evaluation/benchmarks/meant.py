"""Which choice an answer means that was written by hand: its text, its letter or its place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from c2c_lightning.evaluation.benchmarks.item import LETTERS

LETTER = re.compile(
    r"\W*(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)(?:\s+is)?\W+)?([a-j])(?:\W+(.*))?",
    re.IGNORECASE | re.DOTALL,
)
SEPARATOR = re.compile(r"\s*(?:,\s*(?:and|or)\b|[,;/&\n]|\band\b|\bor\b)\s*")


def meanings(answer: Any, choices: Sequence[str]) -> set[str]:
    """The letters that an answer may mean: none if it can be nothing, several if it is ambiguous.

    Args:
        answer: a choice's text or letter or both, or its place counted from 0, as a number or in digits.
        choices: the texts of the choices.
    """
    letters = LETTERS[: len(choices)]
    if type(answer) is int:
        return {letters[answer]} if 0 <= answer < len(letters) else set()
    if not isinstance(answer, str) or not answer.strip():
        return set()
    found = by_text(answer, choices)
    if answer.strip().isdecimal() and int(answer) < len(letters):
        found.add(letters[int(answer)])
    match = LETTER.fullmatch(answer.strip())
    letter, text = (match[1].upper(), (match[2] or "").rstrip(".)]* ")) if match else ("", "")
    if letter and letter in letters and (not text or by_text(text, choices) == {letter}):
        found.add(letter)
    return found


def all_meant(answer: Any, choices: Sequence[str]) -> tuple[str, ...]:
    """The letters of all choices that an answer names, joined by commas, slashes, "and" or "or".

    Returns:
        Letters in their order; none if any part means nothing, or more than one thing.
    """

    @cache
    def read(text: Any) -> frozenset[str]:
        whole = meanings(text, choices)
        if whole or not isinstance(text, str):
            return frozenset(whole if len(whole) == 1 else ())
        for mark in SEPARATOR.finditer(text):  # a text may have "and" within it, so every division is tried
            first, rest = meanings(text[: mark.start()], choices), read(text[mark.end() :])
            if len(first) == 1 and rest:
                return rest | first
        return frozenset()

    return tuple(sorted(read(answer)))


def by_text(answer: str, choices: Sequence[str]) -> set[str]:
    """The letters of the choices that have this text; in another case only if none has it in its own."""
    for same in (str.split, lambda text: text.casefold().split()):  # space never counts
        found = {letter for letter, choice in zip(LETTERS, choices) if same(choice) == same(answer)}
        if found:
            return found
    return set()
