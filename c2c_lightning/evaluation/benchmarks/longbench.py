"""LongBench-E: questions about long texts in 13 datasets (arXiv 2308.14508).

How a dataset asks, how long its answers may be and how they are scored stands in its prompt file,
`prompts/longbench_e.yaml`. The published protocol asks five of the datasets without a chat template; here all are
chats, since a communicator reads chats. The metrics are those of the published scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field
from rapidfuzz import fuzz
from rouge_score.rouge_scorer import RougeScorer

from c2c_lightning.data.records import MalformedRecord
from c2c_lightning.errors import UserError, meant
from c2c_lightning.evaluation.benchmarks.base import BySubject
from c2c_lightning.evaluation.benchmarks.extraction import without_thinking
from c2c_lightning.evaluation.benchmarks.grading import f1
from c2c_lightning.evaluation.benchmarks.item import Grade, Item, TextOrNumber


def rouge_l(response: str, answers: Sequence[str]) -> Grade:
    """The longest common subsequence of words with the best answer, as F-measure (ROUGE-L)."""
    scorer = RougeScorer(["rougeL"])
    return _best(response, answers, lambda said, answer: scorer.score(answer, said)["rougeL"].fmeasure)


def code_similarity(response: str, answers: Sequence[str]) -> Grade:
    """How like the next line of code is to the answer, by edits.

    As LongBench does, the line is the response's first without any comment or code-fence mark; where there is no
    such line it is the first at all, so that a right line with a mark in it is right.
    """
    lines = [line for line in without_thinking(response).split("\n") if line.strip()]
    code = [line for line in lines if not any(mark in line for mark in ("`", "#", "//"))]
    line = (code or lines or [""])[0]
    # Space around it tells nothing: the response's own was lost when it was decoded.
    return _best(line, answers, lambda said, answer: fuzz.ratio(said.strip(), answer.strip()) / 100)


def classification(response: str, answers: Sequence[str], classes: Sequence[str]) -> Grade:
    """Right if the answer is the only class named; a share of that if others are named too.

    A class whose name is part of the answer's name is not counted beside it.
    """

    def score(said: str, answer: str) -> float:
        named = [name for name in classes if name in said and not (name in answer and name != answer)]
        return 1 / len(named) if answer in named else 0.0

    return _best(response, answers, score)


def share_of_numbers(response: str, answers: Sequence[str]) -> Grade:
    """The share of the response's whole numbers that are the number in the answer: the 5 of "Paragraph 5"."""

    def score(said: str, answer: str) -> float:
        numbers, right = re.findall(r"\d+", said), re.findall(r"\d+", answer)
        return numbers.count(right[0]) / len(numbers) if numbers and right else 0.0

    return _best(response, answers, score)


def _best(response: str, answers: Sequence[str], score: Callable[[str, str], float]) -> Grade:
    said = without_thinking(response)
    return Grade(said or None, max(score(said, answer) for answer in answers) if said else 0.0)


METRICS = {
    "f1": f1,
    "rouge_l": rouge_l,
    "code_similarity": code_similarity,
    "count": share_of_numbers,
    "retrieval": share_of_numbers,
    "classification": classification,
}


@dataclass
class LongBenchRecord:
    input: str
    context: str
    answers: list[str]
    subject: str
    all_classes: list[str] = field(default_factory=list)
    id: Annotated[TextOrNumber, Field(alias="_id")] = ""


@dataclass(frozen=True)
class ClassItem(Item):
    """A question whose answer is one of more classes than there are letters."""

    classes: tuple[str, ...] = ()


class LongBenchE(BySubject):
    """Question answering, summaries, few-shot tasks, search and code, each scored by its dataset's own metric.

    Args:
        path: a hub id, or files with its columns.
        name: in file names and metrics.
        prompt: a shipped prompt's name or a path to a YAML file, with every dataset under `subjects`.
        max_new_tokens: of a response; None for what the prompt file says of the dataset.
        max_context_characters: cut the middle out of longer texts, as LongBench does; None to cut nothing.
        subjects: read only these datasets; None for all.
        **kwargs: as for every benchmark.
    """

    columns, subject_column = LongBenchRecord, "dataset"

    def __init__(
        self,
        path: str | list[str] = "THUDM/LongBench",
        name: str = "longbench_e",
        prompt: str = "longbench_e",
        max_new_tokens: int | None = None,
        max_context_characters: int | None = None,
        subjects: list[str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(path, subjects, name=name, prompt=prompt, max_new_tokens=max_new_tokens or 64, **kwargs)
        if max_context_characters is not None and max_context_characters < 2:
            raise UserError(f"{name}.max_context_characters is {max_context_characters}: give at least 2.")
        self.same_limit, self.max_context_characters = max_new_tokens, max_context_characters
        for subject, texts_ in self.prompt.subjects.items():
            if texts_.metric not in METRICS:
                hint = meant(str(texts_.metric), METRICS, f"Give one of {', '.join(METRICS)}.")
                raise UserError(f"{name}.prompt {prompt!r}: metric of {subject} is {texts_.metric!r}. {hint}")

    def is_subject(self, subset: str) -> bool:
        return subset.endswith("_e")

    def subject_of(self, name: str) -> str:
        return name.removesuffix("_e")

    def to_item(self, record: LongBenchRecord, source: str) -> ClassItem:
        subject, answers = record.subject, record.answers
        if subject not in self.prompt.subjects:
            hint = meant(subject, self.prompt.subjects, f"There are {', '.join(self.prompt.subjects)}.")
            raise MalformedRecord(f"dataset {subject!r} is none that the prompt {self.prompt.name!r} has. {hint}")
        prompt = self.prompt.of(subject)
        classes = record.all_classes if prompt.metric == "classification" else []
        if prompt.metric == "classification" and not set(answers) & set(classes):
            raise MalformedRecord(f"answers {answers} are not among the {len(classes)} classes; correct them")
        return ClassItem(
            record.id,
            record.input if record.input.strip() else prompt.question,
            tuple(answers),
            subject=subject,
            context=self._cut(record.context),
            classes=tuple(classes),
        )

    def grade(self, item: ClassItem, response: str) -> Grade:
        prompt = self.prompt.of(item.subject)
        if prompt.first_line:  # a model that goes on with further examples is judged by its own answer
            response = without_thinking(response).split("\n")[0]
        if prompt.metric == "classification":
            return classification(response, item.answers, item.classes)
        return METRICS[prompt.metric](response, item.answers)

    def max_new_tokens_of(self, item: Item) -> int:
        return self.same_limit or self.prompt.of(item.subject).max_new_tokens or self.max_new_tokens

    def _cut(self, context: str) -> str:
        limit = self.max_context_characters
        if limit is None or len(context) <= limit:
            return context
        half = limit // 2
        return context[: limit - half] + context[-half:]
