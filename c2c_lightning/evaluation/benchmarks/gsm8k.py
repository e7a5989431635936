"""GSM8K: grade-school word problems whose answer is a number (arXiv 2110.14168)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from c2c_lightning.data.records import MalformedRecord
from c2c_lightning.evaluation.benchmarks import grading
from c2c_lightning.evaluation.benchmarks.base import Benchmark
from c2c_lightning.evaluation.benchmarks.item import Grade, Item, TextOrNumber


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
    """Word problems, compared by the value of the last result.

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
