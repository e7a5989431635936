"""A user's own questions, with choices or open."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from c2c_lightning.data.records import MalformedRecord, references, unwritten
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.benchmarks import grading
from c2c_lightning.evaluation.benchmarks.base import Benchmark
from c2c_lightning.evaluation.benchmarks.choices import by_text, meanings
from c2c_lightning.evaluation.benchmarks.item import Grade, Item, TextOrNumber, check_choices
from c2c_lightning.files import checked

OneOrMore = Annotated[
    list[TextOrNumber],
    BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
    BeforeValidator(references),
]
GRADINGS = {"exact": grading.exact, "contains": grading.contains, "f1": grading.f1, "math": grading.math}


@dataclass
class OwnRecord:
    question: str
    choices: Any = field(default_factory=list)
    answer: Any = None
    reference: OneOrMore | None = None
    id: TextOrNumber = ""
    subject: TextOrNumber = ""
    context: str = ""


class OwnQuestions(Benchmark):
    """Records with the columns `question`, `choices` and `answer`, or `question` and `reference`.

    `answer` is the right choice's letter, its place as a number (the first is 0), or its text. `reference` is a
    text or number, or a list of them, any of which will do; a question whose list is empty is left out and counted.
    `id`, `subject` and `context` may be there.

    Args:
        path: files, folders or hub ids.
        grading: of open questions: the answer alone, the answer within the response, words in common, or by value.
        **kwargs: as for every benchmark.
    """

    columns, default_name, default_prompt = OwnRecord, "own", "own"

    def __init__(
        self,
        path: str | list[str],
        grading: Literal["exact", "contains", "f1", "math"] = "exact",
        **kwargs: Any,
    ):
        super().__init__(path, **kwargs)
        if grading not in GRADINGS:
            raise UserError(f"{self.name}.grading is {grading!r}: give one of {', '.join(GRADINGS)}.")
        self.grading = grading

    def to_item(self, record: OwnRecord, source: str) -> Item | None:
        given = unwritten(record.choices)
        choices = tuple(checked(given, list[TextOrNumber], f"{self.name}: {source}: choices"))
        if choices:
            # What is a number and what a text nobody can tell in a table's cell.
            in_cell = isinstance(record.choices, str)
            answers = (_meant(record.answer, given, choices, in_cell),)
        elif record.reference:
            answers = tuple(record.reference)
        elif record.reference is not None:
            return self.drop("no answer", source)
        else:
            raise MalformedRecord("it has neither choices nor a reference; give `choices` and `answer`, or `reference`")
        return Item(record.id, record.question, answers, choices, record.subject, record.context)

    def grade(self, item: Item, response: str) -> Grade:
        return super().grade(item, response) if item.choices else GRADINGS[self.grading](response, item.answers)


def _meant(answer: Any, choices: list[Any], texts: tuple[str, ...], in_cell: bool) -> str:
    """The letter of an answer to `choices`, whose texts are `texts`."""
    check_choices(texts)
    found = meanings(answer, texts)
    in_digits = isinstance(answer, str) and answer.strip().isdecimal()
    if in_digits and not in_cell:
        found = by_text(answer, texts) or found  # "4" among 3, 4, 5 and 6 is the text
    elif type(answer) in (int, float) and answer in choices:
        found = found | by_text(str(answer), texts)  # the number 4 may be a place too
    if len(found) > 1:
        remedy = "place as a number" if isinstance(answer, str) and not in_digits else "letter"
        raise MalformedRecord(f"answer {answer!r} may mean {' or '.join(sorted(found))}; give its {remedy}")
    if not found:
        raise MalformedRecord(
            f"answer {answer!r} is not among the choices {list(texts)}; give a letter, a place from 0 or a text"
        )
    return found.pop()
