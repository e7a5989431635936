"""What every benchmark does: read its records, check them, put them into a prompt, grade the responses.

A benchmark is one small class that says which columns a record has and how it becomes an `Item`; a user's own class
works the same (`choices.py` has four of them).
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from c2c_lightning.data.records import MalformedRecord
from c2c_lightning.data.source import Source
from c2c_lightning.errors import UserError, meant
from c2c_lightning.evaluation.benchmarks import grading
from c2c_lightning.evaluation.benchmarks.item import Grade, Item, check_item
from c2c_lightning.evaluation.benchmarks.prompt import Prompt, fill
from c2c_lightning.evaluation.benchmarks.rows import Row, is_local, read_rows, subset_names
from c2c_lightning.files import checked
from c2c_lightning.models import Message

log = logging.getLogger(__name__)

# Names become parts of file names, also those that come from a file of results.
NAME = r"^\w[\w.-]*$"


class Benchmark(ABC):
    """Questions with known answers, and the prompt that asks them.

    Args:
        path: JSONL or Parquet files, folders of them, folders that `datasets` saved, or hub ids.
        split: of a hub dataset or a saved dataset of several splits.
        name: in file names and metrics; None for the class's name.
        prompt: a shipped prompt's name or a path to a YAML file (see `prompt.py`).
        answer_mode: whether the response is generated, or is the choice's letter of the highest probability.
        max_new_tokens: of a response.
        limit: only the first so many questions.
        exemplars: where the exemplars of few-shot prompts come from; None for the `exemplar_split` of a hub
            dataset, and none for files.
        subset: of a hub dataset that has several.

    Raises:
        UserError: one of them cannot be; the records are read and checked by `items`.
    """

    # A dataclass of a record's columns, by which records are checked; with None, `to_item` gets them as dicts.
    columns: ClassVar[type | None] = None
    # Where the exemplars of the hub dataset are; None if it has none.
    exemplar_split: ClassVar[str | None] = None

    def __init__(
        self,
        path: str | list[str],
        split: str = "test",
        name: str | None = None,
        prompt: str = "choices",
        answer_mode: Literal["generate", "logits"] = "generate",
        max_new_tokens: int = 64,
        limit: int | None = None,
        exemplars: str | list[str] | None = None,
        subset: str | None = None,
    ):
        self.name = name or type(self).__name__.lower()
        if not re.fullmatch(NAME, self.name):
            raise UserError(f"name {self.name!r} becomes part of file names: use letters, digits, '_', '-' and '.'.")
        if answer_mode not in ("generate", "logits"):
            raise UserError(f"{self.name}.answer_mode is {answer_mode!r}: give 'generate' or 'logits'.")
        for key, value in (("max_new_tokens", max_new_tokens), ("limit", limit)):
            if value is not None and value < 1:
                raise UserError(f"{self.name}.{key} is {value}: give at least 1.")
        self.path, self.split, self.subset, self.limit = path, split, subset, limit
        self.prompt = Prompt.load(prompt, f"{self.name}.prompt")
        self.answer_mode, self.max_new_tokens, self.exemplars = answer_mode, max_new_tokens, exemplars
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
        if self.answer_mode == "logits" and not self.has_choices:
            raise UserError(
                f"{self.name}.answer_mode is 'logits', which ranks the letters of choices, but there are open "
                "questions: use 'generate'."
            )
        return self._items

    @property
    def has_choices(self) -> bool:
        """Whether every question has lettered choices."""
        return all(item.choices for item in self._items)

    def leave_out(self, ids: set[str], reason: str) -> None:
        """Drops questions that were read but cannot be asked, and counts them as `dropped`.

        Raises:
            UserError: none would be left.
        """
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
        """The question with its context and its lettered choices, without any instruction."""
        choices = self.prompt.of(item.subject).choices(item.letters, item.choices)
        return "\n\n".join(filter(None, (item.context, item.question, choices)))

    def messages(self, item: Item) -> list[Message]:
        """The chat that asks the question."""
        prompt = self.prompt.of(item.subject)
        values = {
            "question": item.question,
            "context": item.context,
            "choices": prompt.choices(item.letters, item.choices),
            "letters": ", ".join(item.letters),
        }
        return [{"role": "user", "content": fill(prompt.message, values)}]

    def response(self, item: Item) -> str:
        """The right answer in the form that the prompt asks for."""
        return fill(self.prompt.of(item.subject).response, self.answer_values(item))

    def answer_values(self, item: Item) -> dict[str, str]:
        """What the placeholders of the prompt's `response` stand for."""
        answer = item.answers[0]
        text = item.choices[item.letters.index(answer)] if item.choices else answer
        return {"answer": answer, "text": text, "solution": ""}

    def grade(self, item: Item, response: str) -> Grade:
        """How right a response is: by its letter where there are choices, otherwise by its exact text."""
        if item.choices:
            return grading.letter(response, item.answers, item.letters)
        return grading.exact(response, item.answers)

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
        return read_rows(source, self.subsets)

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
        if isinstance(row.record, MalformedRecord):
            raise row.record
        if not isinstance(row.record, dict):
            raise MalformedRecord(f"it is a {type(row.record).__name__}; make it an object with named columns")
        record = row.record
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
        path: files, folders or hub ids, as for every benchmark.
        subjects: read only these; None for all.
        **kwargs: as for every benchmark.
    """

    # Where a record names its own subject.
    subject_column: ClassVar[str] = "subject"

    def __init__(self, path: str | list[str], subjects: list[str] | None = None, **kwargs: Any):
        super().__init__(path, **kwargs)
        if subjects == []:
            raise UserError(f"{self.name}.subjects is empty: name one, or give null for all.")
        self.subjects = subjects

    def read(self, source: Source) -> Iterator[Row]:
        seen = set()
        for row in read_rows(source, self.subsets):
            if isinstance(row.record, dict):
                subject = self.subject_of(str(row.record.get(self.subject_column) or row.stem))
                seen.add(subject)
                if self.subjects is not None and subject not in self.subjects:
                    continue
                row = row._replace(record={**row.record, "subject": subject})
            yield row
        self._check_subjects(seen)

    def subsets(self, hub_id: str) -> list[str | None]:
        if self.subset:
            return [self.subset]
        names = [name for name in subset_names(hub_id, f"{self.name}.path") if self.is_subject(name)]
        self._check_subjects({self.subject_of(name) for name in names})
        return [name for name in names if self.subjects is None or self.subject_of(name) in self.subjects]

    def is_subject(self, subset: str) -> bool:
        """Whether a subset of the hub dataset belongs to the benchmark."""
        return True

    def subject_of(self, name: str) -> str:
        """The subject's name, from that of its file or subset."""
        return name

    def _check_subjects(self, known: set[str]) -> None:
        for subject in self.subjects or []:
            if subject not in known:
                hint = meant(subject, known, f"There are {', '.join(sorted(known))}.")
                raise UserError(f"{self.name}.subjects has {subject!r}, which the records have not. {hint}")
