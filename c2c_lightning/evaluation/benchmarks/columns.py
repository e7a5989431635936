"""Columns of a record as the values that they should be; MalformedRecord says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from c2c_lightning.data.records import MalformedRecord
from c2c_lightning.evaluation.benchmarks.item import LETTERS, Item


def column(record: dict[str, Any], name: str) -> Any:
    """A column that must be there."""
    if name not in record:
        raise MalformedRecord(f"no column {name!r} among {sorted(record)}; add it, or choose the benchmark that fits")
    return record[name]


def text(record: dict[str, Any], name: str) -> str:
    """A column of text."""
    value = column(record, name)
    if not isinstance(value, str):
        raise MalformedRecord(f"{name} is {value!r}, which is no text; write it in quotes")
    return value


def texts(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """A column that is a list of texts."""
    value = column(record, name)
    if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
        raise MalformedRecord(f"{name} is {value!r}; give a list of texts")
    return tuple(value)


def record_id(record: dict[str, Any], name: str = "id") -> str:
    """The id that the record brings, as text; empty if it has none."""
    value = record.get(name)
    return "" if value is None else str(value)


def letter_at(index: Any, choices: Sequence[str], name: str = "answer") -> str:
    """The letter of a choice by its place, counted from 0."""
    if type(index) is not int or not 0 <= index < min(len(choices), len(LETTERS)):
        raise MalformedRecord(f"{name} {index!r} is not among the {len(choices)} choices; give one from 0")
    return LETTERS[index]


def labelled_choices(record: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """Choices with labels of any kind (A-E, 1-5), as ARC and OpenBookQA have them.

    Returns:
        The choices' texts, and the right one's letter.
    """
    choices = column(record, "choices")
    if not isinstance(choices, dict):
        raise MalformedRecord(f"choices is {choices!r}; give an object with the lists 'text' and 'label'")
    listed, labels, key = texts(choices, "text"), texts(choices, "label"), text(record, "answerKey")
    if len(labels) != len(listed) or len(set(labels)) != len(labels):
        raise MalformedRecord(f"{len(listed)} choices have the labels {list(labels)}; give each a label of its own")
    if key not in labels:
        raise MalformedRecord(f"answerKey {key!r} is not among the choices {list(labels)}; give one of them")
    return listed, letter_at(labels.index(key), listed)


def check_item(item: Item) -> None:
    """Raises MalformedRecord if nobody could be asked this, or no answer could be right."""
    if not item.question.strip():
        raise MalformedRecord("the question is empty; write one, or take the record out")
    if item.choices and not 2 <= len(item.choices) <= len(LETTERS):
        raise MalformedRecord(f"it has {len(item.choices)} choices; give from 2 to {len(LETTERS)}")
    if not any(answer.strip() for answer in item.answers):
        raise MalformedRecord("it has no answer; give one, or take the record out")
    strangers = [answer for answer in item.answers if item.choices and answer not in item.letters]
    if strangers:
        raise MalformedRecord(f"answer {strangers[0]!r} is not among the choices {', '.join(item.letters)}; correct it")
