"""The public benchmarks whose questions have lettered choices, and how an answer that was written by hand is read.

A benchmark is a schema of its published columns and `to_item`, which makes an item of a record. Its prompt is a file of
`prompts/`; `Benchmark.grade` compares letters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field

from c2c_lightning.data.records import MalformedRecord, unwritten
from c2c_lightning.evaluation.benchmarks.base import Benchmark, BySubject
from c2c_lightning.evaluation.benchmarks.item import LETTERS, Item, TextOrNumber, check_choices

CORRECTED = ("wrong_groundtruth", "multiple_correct_answers")
UNCLEAR = ("bad_question_clarity", "bad_options_clarity", "expert")
LETTER = re.compile(
    r"\W*(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)(?:\s+is)?\W+)?([a-z])(?:\W+(.*))?",
    re.IGNORECASE | re.DOTALL,
)
SEPARATOR = re.compile(r"\s*(?:,\s*(?:and|or)\b|[,;/&\n]|\band\b|\bor\b)\s*|(?<=\d)\s+(?=\d)")


@dataclass
class Labelled:
    text: list[str]
    label: list[str]  # of any kind, such as A-E or 1-5


@dataclass
class LabelledRecord:
    question: Annotated[str, Field(validation_alias=AliasChoices("question", "question_stem"))]
    choices: Annotated[Labelled, BeforeValidator(unwritten)]
    answerKey: str
    id: TextOrNumber = ""


class ARCChallenge(Benchmark):
    """Grade-school science questions that retrieval and word counts get wrong (arXiv 1803.05457), 3 to 5 choices.

    ARC-Easy is the other `subset` of the hub dataset.
    """

    columns, exemplar_split = LabelledRecord, "train"
    default_path, default_subset, default_name = "allenai/ai2_arc", "ARC-Challenge", "arc_challenge"

    def to_item(self, record: LabelledRecord, source: str) -> Item:
        texts, labels, key = record.choices.text, record.choices.label, record.answerKey
        if len(labels) != len(texts) or len(set(labels)) != len(labels):
            raise MalformedRecord(f"{len(texts)} choices have the labels {labels}; give each a label of its own")
        if key not in labels:
            raise MalformedRecord(f"answerKey {key!r} is not among the choices {labels}; give one of them")
        return Item(record.id, record.question, (letter_at(labels.index(key), texts),), tuple(texts))


class OpenBookQA(ARCChallenge):
    """Elementary science questions that need a fact and common sense (arXiv 1809.02789), asked without the book."""

    default_path, default_subset, default_name = "allenai/openbookqa", "main", "openbookqa"


@dataclass
class CEvalRecord:
    question: str
    A: str
    B: str
    C: str
    D: str
    answer: str
    subject: str
    id: TextOrNumber = ""


class CEval(BySubject):
    """Chinese examinations in 52 subjects (arXiv 2305.08322); the test split's answers are not public, so `val`."""

    columns, exemplar_split = CEvalRecord, "dev"
    default_path, default_split, default_name = "ceval/ceval-exam", "val", "ceval"
    default_prompt = "choices_chinese"

    def to_item(self, record: CEvalRecord, source: str) -> Item:
        # Numbers begin anew in every subject.
        id = "" if record.id == "" else f"{record.subject}/{record.id}"
        choices = (record.A, record.B, record.C, record.D)
        return Item(id, record.question, (record.answer.strip(),), choices, record.subject)


@dataclass
class MMLURecord:
    question: str
    choices: Annotated[list[str], BeforeValidator(unwritten)]
    error_type: str
    subject: str
    answer: Any = None
    correct_answer: Any = None
    id: TextOrNumber = ""


class MMLURedux(BySubject):
    """Questions in 57 subjects, with MMLU's mistakes corrected by hand (arXiv 2406.04127).

    Questions without a correct answer are left out, as in the C2C paper. Where the hand check found a wrong or a
    second right answer, its correction counts; one that cannot be read leaves the question out.
    """

    columns = MMLURecord
    default_path, default_name = "edinburgh-dawg/mmlu-redux-2.0", "mmlu_redux"

    def to_item(self, record: MMLURecord, source: str) -> Item | None:
        # It was typed by hand: "OK", "Wrong Groundtruth".
        error, choices = "_".join(record.error_type.lower().split()), tuple(record.choices)
        if error == "no_correct_answer":
            return self.drop("no correct answer", source)
        if error in CORRECTED:
            answers = all_meant(record.correct_answer, choices)
            if not answers:
                return self.drop("correction cannot be read", source)
        elif error == "ok" or error in UNCLEAR:
            answers = (letter_at(record.answer, choices),)
        else:
            known = ", ".join(("ok", "no_correct_answer", *CORRECTED, *UNCLEAR))
            raise MalformedRecord(f"error_type {record.error_type!r} is none of {known}; correct it")
        return Item(record.id, record.question, answers, choices, record.subject)

    def subject_of(self, name: str) -> str:
        return name.removeprefix("mmlu_")


def letter_at(place: Any, choices: Sequence[str]) -> str:
    """The letter of a choice by its place, counted from 0; in digits too, as a table has it."""
    check_choices(choices)
    if isinstance(place, str) and place.strip().isdecimal():
        place = int(place)
    if type(place) is not int or not 0 <= place < len(choices):
        raise MalformedRecord(f"answer {place!r} is not among the {len(choices)} choices; give one from 0")
    return LETTERS[place]


def meanings(answer: Any, choices: Sequence[str]) -> set[str]:
    """The letters that an answer may mean: none if it can be nothing, several if it is ambiguous.

    It is a choice's text or letter or both, or its place counted from 0, as a number or in digits.
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
    """The letters of all choices that an answer names, joined by commas, slashes, "and" or "or", digits by spaces.

    There are none if any part means nothing, or more than one thing.
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
