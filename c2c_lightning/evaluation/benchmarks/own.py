"""A user's own questions, with choices or open."""

from __future__ import annotations

from typing import Any, Literal

from c2c_lightning.data.records import MalformedRecord
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.benchmarks import grading
from c2c_lightning.evaluation.benchmarks.base import Benchmark
from c2c_lightning.evaluation.benchmarks.columns import column, record_id, text, texts
from c2c_lightning.evaluation.benchmarks.item import Grade, Item
from c2c_lightning.evaluation.benchmarks.meant import by_text, meanings

GRADINGS = {"exact": grading.exact, "math": grading.math, "f1": grading.f1}


class OwnQuestions(Benchmark):
    """Records with the columns `question`, `choices` and `answer`, or `question` and `reference`.

    `answer` is the right choice's letter, its place as a number (the first is 0), or its text. `reference` is a
    text or a list of texts, any of which will do. `id`, `subject` and `context` may be there.

    Args:
        path: files, folders or hub ids.
        name: in file names and metrics.
        prompt: a shipped prompt's name or a path to a YAML file.
        grading: of open questions: word for word, by value, or by words in common.
        **kwargs: as for every benchmark.
    """

    def __init__(
        self,
        path: str | list[str],
        name: str = "own",
        prompt: str = "own",
        grading: Literal["exact", "math", "f1"] = "exact",
        **kwargs: Any,
    ):
        super().__init__(path, name=name, prompt=prompt, **kwargs)
        if grading not in GRADINGS:
            raise UserError(f"{self.name}.grading is {grading!r}: give one of {', '.join(GRADINGS)}.")
        self.grading = grading

    def to_item(self, record: dict[str, Any], source: str) -> Item:
        # Columns that only some records have are None in the others once they were Parquet.
        given = {name: value for name, value in record.items() if value is not None}
        choices = texts(given, "choices") if "choices" in given else ()
        if choices:
            answers = (_meant(column(given, "answer"), choices),)
        elif isinstance(column(given, "reference"), str):
            answers = (text(given, "reference"),)
        else:
            answers = texts(given, "reference")
        subject, context = (text(given, name) if name in given else "" for name in ("subject", "context"))
        return Item(record_id(given), text(given, "question"), answers, choices, subject, context)

    def grade(self, item: Item, response: str) -> Grade:
        return super().grade(item, response) if item.choices else GRADINGS[self.grading](response, item.answers)


def _meant(answer: Any, choices: tuple[str, ...]) -> str:
    found = meanings(answer, choices)
    if isinstance(answer, str) and answer.strip().isdecimal():
        found = by_text(answer, choices) or found  # "4" among 3, 4, 5 and 6 is the text
    if len(found) > 1:
        raise MalformedRecord(f"answer {answer!r} may mean {' or '.join(sorted(found))}; give its place as a number")
    if not found:
        raise MalformedRecord(
            f"answer {answer!r} is not among the choices {list(choices)}; give a letter, a place from 0 or a text"
        )
    return found.pop()
