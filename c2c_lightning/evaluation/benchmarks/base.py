"""What every benchmark does: read its records, check them, put them into a prompt, grade the responses.

A benchmark is one small class that says which columns a record has and how it becomes an `Item`; a user's own class
works the same (`choices.py` has some).
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import datasets
import numpy as np

from c2c_lightning.data.readers import stem
from c2c_lightning.data.records import Context, MalformedRecord, apart
from c2c_lightning.data.source import Source
from c2c_lightning.errors import UserError, check_at_least, first_line, meant
from c2c_lightning.evaluation.benchmarks import grading
from c2c_lightning.evaluation.benchmarks.item import Grade, Item, check_item
from c2c_lightning.evaluation.benchmarks.prompt import Prompt, fill
from c2c_lightning.files import checked
from c2c_lightning.models import Message

log = logging.getLogger(__name__)

AnswerMode = Literal["generate", "logits", "likelihood", "likelihood_per_character"]
# Names become parts of file names, also those that come from a file of results.
NAME = r"^\w[\w.-]*$"


class Row(NamedTuple):
    """A record and where it stands."""

    stem: str  # of its file, or the hub subset's name
    number: int  # in that file or subset, from 0
    source: str  # file and line, for messages
    record: Any  # usually a dict of its columns; MalformedRecord where a line is not JSON


class Benchmark(ABC):
    """Questions with known answers, and the prompt that asks them.

    Args:
        path: files, folders of them, folders that `datasets` saved, or hub ids; None for the published data set.
        split: of a hub dataset or a saved dataset of several splits; None for the one that is published with answers.
        name: in file names and metrics; None for the benchmark's own.
        prompt: a shipped prompt's name or a path to a YAML file (see `prompt.py`); None for the benchmark's own, and
            where choices are ranked by their likelihood for the question alone.
        answer_mode: `generate` for the response that is decoded greedily; `logits` for the choice whose letter is its
            likeliest beginning; `likelihood` for the choice whose text is the likeliest response, and
            `likelihood_per_character` for the one that is so per character (`acc` and `acc_norm` of the field).
        max_new_tokens: of a response.
        limit: only the first so many questions.
        exemplars: where the exemplars of few-shot prompts come from; None for the `exemplar_split` of a hub
            dataset, and none for files.
        subset: of a hub dataset that has several; None for the benchmark's own.
        context: who reads the text that a question is about, if it has one: `both` models, the `sharer` alone, which
            hands it over by a mapper, the `receiver` alone, for which nothing is fused into it, or `nobody`.

    Raises:
        UserError: one of them cannot be; the records are read and checked by `items`.
    """

    # A dataclass of a record's columns, by which records are checked; with None, `to_item` gets them as dicts.
    columns: ClassVar[type | None] = None
    # Where the exemplars of the hub dataset are; None if it has none.
    exemplar_split: ClassVar[str | None] = None
    # What None stands for.
    default_path: ClassVar[str | None] = None
    default_split: ClassVar[str] = "test"
    default_subset: ClassVar[str | None] = None
    default_name: ClassVar[str | None] = None
    default_prompt: ClassVar[str] = "choices"

    def __init__(
        self,
        path: str | list[str] | None = None,
        split: str | None = None,
        name: str | None = None,
        prompt: str | None = None,
        answer_mode: AnswerMode = "generate",
        max_new_tokens: int = 64,
        limit: int | None = None,
        exemplars: str | list[str] | None = None,
        subset: str | None = None,
        context: Context = "both",
    ):
        self.name = name or self.default_name or type(self).__name__.lower()
        if not re.fullmatch(NAME, self.name):
            raise UserError(f"name {self.name!r} becomes part of file names: use letters, digits, '_', '-' and '.'.")
        if answer_mode not in get_args(AnswerMode):
            raise UserError(
                f"{self.name}.answer_mode is {answer_mode!r}: give one of {', '.join(get_args(AnswerMode))}."
            )
        if context not in get_args(Context):
            raise UserError(f"{self.name}.context is {context!r}: give one of {', '.join(get_args(Context))}.")
        self.context = context
        check_at_least(1, f"{self.name}.{{}}", max_new_tokens=max_new_tokens, limit=limit)
        self.path = self.default_path if path is None else path
        if self.path is None:
            raise UserError(f"{self.name}.path is missing: name files, folders or hub ids.")
        self.split, self.subset = split or self.default_split, subset or self.default_subset
        self.answer_mode, self.max_new_tokens = answer_mode, max_new_tokens
        self.limit, self.exemplars = limit, exemplars
        own = "question" if self.by_likelihood else self.default_prompt
        self.prompt = Prompt.load(prompt or own, f"{self.name}.prompt")
        self.dropped: dict[str, int] = {}
        self._tally: dict[str, int] = {}

    @abstractmethod
    def to_item(self, record: Any, source: str) -> Item | None:
        """A record as an item.

        Args:
            record: its columns, as `columns` or as a dict.
            source: names its file and row, such as "x.jsonl:3".

        Returns:
            The item, its id empty if the record has none; None for a record that is left out, having called `drop`.

        Raises:
            MalformedRecord: something in it cannot be; the text says what, and what to do.
        """

    def items(self) -> list[Item]:
        """The questions, in the order of the files; `dropped` then says how many records were left out, and why.

        Raises:
            UserError: the records cannot be read, or one of them is wrong, or there are none.
        """
        if self.answer_mode != "generate" and not self.has_choices:
            raise UserError(
                f"{self.name}.answer_mode is {self.answer_mode!r}, which ranks choices, but there are open questions: "
                "use 'generate'."
            )
        return self._items

    @property
    def has_choices(self) -> bool:
        """Whether every question has choices."""
        return all(item.choices for item in self._items)

    @property
    def by_likelihood(self) -> bool:
        """Whether choices are ranked by the likelihood of their texts, and nothing is generated."""
        return self.answer_mode.startswith("likelihood")

    def leave_out(self, ids: set[str], reason: str) -> None:
        """Drops questions that were read but cannot be asked, and counts them; a UserError if none would be left."""
        left = [item for item in self._items if item.id not in ids]
        if not left:
            raise UserError(f"{self.name}: all of its {len(ids)} questions are left out: {reason}.")
        if ids:
            self._items = left
            self.dropped = {**self.dropped, reason: self.dropped.get(reason, 0) + len(ids)}
            log.warning("%s: left out %d questions: %s", self.name, len(ids), reason)

    def exemplar_items(self) -> list[Item]:
        """Questions with their answers, from elsewhere than `items`; empty if there are none."""
        return self._exemplar_items

    def question_text(self, item: Item) -> str:
        """The question with its lettered choices, and its context if the sharer reads it; without any instruction."""
        choices = "" if self.by_likelihood else self.prompt.of(item.subject).choices(item.letters, item.choices)
        context = item.context if self.context in ("both", "sharer") else ""
        return "\n\n".join(filter(None, (context, item.question, choices)))

    def messages(self, item: Item) -> list[Message]:
        """The chat that asks the question."""
        prompt = self.prompt.of(item.subject)
        values = {
            "question": item.question,
            "context": item.context if self.context == "both" else "",
            "choices": prompt.choices(item.letters, item.choices),
            "letters": ", ".join(item.letters),
        }
        return [{"role": "user", "content": fill(prompt.message, values), **apart(item.context, self.context)}]

    def response(self, item: Item) -> str:
        """The right answer in the form that the prompt asks for; where choices are ranked, the right one's text."""
        if self.by_likelihood:
            right = item.letters.index(item.answers[0])
            return (self.first_words(item) + self.continuations(item)[right]).strip()
        return fill(self.prompt.of(item.subject).response, self.answer_values(item))

    def answer_values(self, item: Item) -> dict[str, str]:
        """What the placeholders of the prompt's `response` stand for."""
        answer = item.answers[0]
        text = item.choices[item.letters.index(answer)] if item.choices else answer
        return {"answer": answer, "text": text, "solution": ""}

    def first_words(self, item: Item) -> str:
        """What every response to this item begins with; it is given, and no part of what is graded."""
        return ""

    def continuations(self, item: Item) -> tuple[str, ...]:
        """What is ranked by its likelihood: how the response goes on with each choice."""
        return item.choices

    def stops(self, item: Item) -> list[str]:
        """Where a response ends, beside the end of turn; a response does not have them in it."""
        return []

    def grade(self, item: Item, response: str) -> Grade:
        """How right a response is: by its letter where there are choices, otherwise by its exact text."""
        if item.choices:
            return grading.letter(response, item.answers, item.letters)
        return grading.exact(response, item.answers)

    def grade_choices(self, item: Item, log_likelihoods: list[float]) -> Grade:
        """How right the likeliest choice is, by its whole text and per character; the answer mode says which counts."""
        per_character = np.array(log_likelihoods) / [max(len(text), 1) for text in item.choices]
        chosen = {"acc": item.letters[np.argmax(log_likelihoods)], "acc_norm": item.letters[np.argmax(per_character)]}
        metrics = {name: float(letter in item.answers) for name, letter in chosen.items()}
        counts = "acc" if self.answer_mode == "likelihood" else "acc_norm"
        return Grade(chosen[counts], metrics[counts], metrics)

    def max_new_tokens_of(self, item: Item) -> int:
        """How long the response to this item may be, in tokens."""
        return self.max_new_tokens

    def drop(self, reason: str, source: str) -> None:
        """Counts a record that is left out."""
        self._tally[reason] = self._tally.get(reason, 0) + 1
        log.info("%s: left out %s: %s", self.name, source, reason)

    def rows(self) -> Iterator[Row]:
        """The records that the questions are made of."""
        return self.read(self._source(self.path, self.split, "path"))

    def exemplar_rows(self) -> Iterator[Row] | None:
        """The records that the exemplars are made of; None if there are none."""
        if self.exemplars:
            source = self._source(self.exemplars, self.exemplar_split or "train", "exemplars")
            overlap = self._source(self.path, self.split, "path").shared(source)
            if overlap:
                raise UserError(
                    f"{self.name}.exemplars: {overlap} holds the questions too; give exemplars from elsewhere."
                )
            return self.read(source)
        names = [self.path] if isinstance(self.path, str) else self.path
        if self.exemplar_split and not any(is_local(name) for name in names):
            return self.read(self._source(self.path, self.exemplar_split, "path"))
        return None

    def read(self, source: Source) -> Iterator[Row]:
        """The records of files and hub datasets."""
        for part in source.parts():
            local = is_local(part.path)
            for subset in [part.subset] if local else self.subsets(part.path):
                name = stem(part.path) if local or not subset else subset
                for number, (place, record) in enumerate(replace(part, subset=subset).rows()):
                    yield Row(name, number, place, record)

    def subsets(self, hub_id: str) -> list[str | None]:
        """The subsets of a hub dataset that are read, in their order."""
        return [self.subset]

    @cached_property
    def _items(self) -> list[Item]:
        items = self._checked(self.rows(), self.limit, "path")
        self.dropped = self._tally
        if self.dropped:
            log.info("%s: left out %s", self.name, self.dropped)
        return items

    @cached_property
    def _exemplar_items(self) -> list[Item]:
        rows = self.exemplar_rows()
        return [] if rows is None else self._checked(rows, None, "exemplars")

    def _source(self, path: str | list[str], split: str, key: str) -> Source:
        source = Source(path, split, self.subset, prefix=f"{self.name}." if key == "path" else f"{self.name}.{key}: ")
        source.check()
        return source

    def _checked(self, rows: Iterable[Row], limit: int | None, key: str) -> list[Item]:
        self._tally = {}
        items: dict[str, Item] = {}
        sources: dict[str, str] = {}
        for row in rows:
            try:
                item = self._item(row)
            except MalformedRecord as error:
                raise UserError(f"{self.name}: {row.source}: {error}") from error
            if item is None:
                continue
            if item.id in items:
                raise UserError(
                    f"{self.name}: {row.source}: id {item.id!r} is also that of {sources[item.id]}; "
                    "make ids unique, or leave them out."
                )
            items[item.id], sources[item.id] = item, row.source
            if len(items) == limit:
                break
        if not items:
            left_out = ", ".join(f"{count} left out: {reason}" for reason, count in self._tally.items())
            raise UserError(f"{self.name}.{key} {getattr(self, key)!r} has no questions ({left_out or 'no records'}).")
        return list(items.values())

    def _item(self, row: Row) -> Item | None:
        record = row.record
        if isinstance(record, MalformedRecord):
            raise record
        if not isinstance(record, dict):
            raise MalformedRecord(f"it is a {type(record).__name__}; make it an object with named columns")
        if self.columns:
            # Columns that only some records have are None in the others once they were Parquet.
            given = {name: value for name, value in record.items() if value is not None}
            remedy = "Correct it, or choose the benchmark that fits."
            record = checked(given, self.columns, f"{self.name}: {row.source}", remedy)
        item = self.to_item(record, row.source)
        if item is None:
            return None
        if not item.id:
            item = replace(item, id=f"{item.subject or row.stem}/{row.number}")
        check_item(item)
        return item


class BySubject(Benchmark):
    """Reads every subset of a hub dataset, or every file of a folder, as a subject.

    A record's own subject wins; otherwise it is the stem of its file or the subset's name. Either way `to_item`
    finds it under `subject`.

    Args:
        path: as for every benchmark.
        subjects: read only these; None for all.
        **kwargs: as for every benchmark.
    """

    def __init__(self, path: str | list[str] | None = None, subjects: list[str] | None = None, **kwargs: Any):
        super().__init__(path, **kwargs)
        if subjects == []:
            raise UserError(f"{self.name}.subjects is empty: name one, or give null for all.")
        self.subjects = subjects

    def read(self, source: Source) -> Iterator[Row]:
        seen = set()
        for row in super().read(source):
            if isinstance(row.record, dict):
                subject = self.subject_of(str(row.record.get("subject") or row.stem))
                seen.add(subject)
                if self.subjects is not None and subject not in self.subjects:
                    continue
                row = row._replace(record={**row.record, "subject": subject})
            yield row
        self._check_subjects(seen)

    def subsets(self, hub_id: str) -> list[str | None]:
        if self.subset:
            return [self.subset]
        try:
            names = datasets.get_dataset_config_names(hub_id)
        except (OSError, ValueError) as error:  # whatever the hub client raises is one of them
            raise UserError(
                f"{self.name}.path {hub_id!r} is no file or folder here, and as a hub id: {first_line(error)}"
            ) from error
        self._check_subjects(set(map(self.subject_of, names)))
        return [name for name in names if self.subjects is None or self.subject_of(name) in self.subjects]

    def subject_of(self, name: str) -> str:
        """The subject's name, from that of its file or subset."""
        return name

    def _check_subjects(self, known: set[str]) -> None:
        for subject in self.subjects or []:
            if subject not in known:
                hint = meant(subject, known, f"There are {', '.join(sorted(known))}.")
                raise UserError(f"{self.name}.subjects has {subject!r}, which the records have not. {hint}")


def is_local(path: str) -> bool:
    return Path(path).expanduser().exists()
