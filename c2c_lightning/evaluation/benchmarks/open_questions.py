"""Benchmarks of open questions: word problems, and the built-in world."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from c2c_lightning.data.records import MalformedRecord
from c2c_lightning.evaluation.benchmarks import grading
from c2c_lightning.evaluation.benchmarks.base import Benchmark, Row
from c2c_lightning.evaluation.benchmarks.item import Grade, Item, TextOrNumber
from c2c_lightning.nano import world


@dataclass
class GSM8KRecord:
    question: str
    answer: str
    id: TextOrNumber = ""


@dataclass(frozen=True)
class SolvedItem(Item):
    """A question with the steps to its answer."""

    solution: str = ""


class GSM8K(Benchmark):
    """Grade-school word problems (arXiv 2110.14168), compared by the value of the last result.

    The prompt `number` asks for the number alone, which fits the paper's 64 tokens; `worked_steps` asks for the
    way to it and needs a higher `max_new_tokens`.
    """

    columns, exemplar_split = GSM8KRecord, "train"
    default_path, default_subset, default_name = "openai/gsm8k", "main", "gsm8k"
    default_prompt = "number"

    def to_item(self, record: GSM8KRecord, source: str) -> SolvedItem:
        solution, mark, answer = record.answer.rpartition("####")
        if not mark:
            raise MalformedRecord("answer has no final number; write it after '####'")
        steps = re.sub(r"<<[^>]*>>", "", solution).strip()  # without the marks for a calculator
        return SolvedItem(record.id, record.question, (answer.strip(),), solution=steps)

    def answer_values(self, item: SolvedItem) -> dict[str, str]:
        return {**super().answer_values(item), "solution": item.solution}

    def grade(self, item: Item, response: str) -> Grade:
        return grading.math(response, item.answers)


class NanoWorld(Benchmark):
    """The 400 held-out questions of the built-in pair about people whom fuser training never used; needs no files.

    They are answered with a word.

    Args:
        max_new_tokens: of a response; answers are words of a few tokens.
        told: ask about people whom neither model knows; a sentence about each is the question's context.
        limit: only the first so many questions.
        **kwargs: as for every benchmark; there are no files to name.
    """

    default_name, default_prompt = "nano", "question"  # the built-in pair knows no instructions

    def __init__(self, max_new_tokens: int = 16, limit: int | None = None, told: bool = False, **kwargs: Any):
        super().__init__([], max_new_tokens=max_new_tokens, limit=limit, **kwargs)
        self.told = told
        self._train, self._held_out = world.told_facts() if told else world.facts()

    def rows(self) -> Iterator[Row]:
        return _rows(self._held_out)

    def exemplar_rows(self) -> Iterator[Row]:
        # Of those who are told of, a name may be in several worlds.
        return _rows({(fact.name, fact.relation.noun): fact for fact in self._train}.values())

    def to_item(self, record: dict[str, Any], source: str) -> Item:
        fact: world.Fact = record["fact"]
        noun = fact.relation.noun
        context = fact.plain_statement if self.told else ""
        return Item(f"{fact.name}/{noun}", fact.question, (fact.answer,), subject=noun, context=context)


def _rows(facts: Iterable[world.Fact]) -> Iterator[Row]:
    for number, fact in enumerate(facts):
        yield Row("nano", number, f"nano world: {fact.name}", {"fact": fact})
