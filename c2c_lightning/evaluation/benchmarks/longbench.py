"""LongBench-E: questions about long texts in 13 datasets (arXiv 2308.14508).

How a dataset asks, how long its answers may be and how they are scored stands in its prompt file,
`prompts/longbench_e.yaml`. The published protocol asks five of the datasets without a chat template; here all are
chats, since a communicator reads chats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from c2c_lightning.data.records import MalformedRecord
from c2c_lightning.errors import UserError, meant
from c2c_lightning.evaluation.benchmarks import grading
from c2c_lightning.evaluation.benchmarks.by_subject import BySubject
from c2c_lightning.evaluation.benchmarks.columns import record_id, text, texts
from c2c_lightning.evaluation.benchmarks.extraction import without_thinking
from c2c_lightning.evaluation.benchmarks.item import Grade, Item

METRICS = {
    "f1": grading.f1,
    "rouge_l": grading.rouge_l,
    "code_similarity": grading.code_similarity,
    "count": grading.count,
    "retrieval": grading.retrieval,
    "classification": grading.classification,
}


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

    subject_column = "dataset"

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

    def to_item(self, record: dict[str, Any], source: str) -> ClassItem:
        subject = record["subject"]
        if subject not in self.prompt.subjects:
            hint = meant(subject, self.prompt.subjects, f"There are {', '.join(self.prompt.subjects)}.")
            raise MalformedRecord(f"dataset {subject!r} is none that the prompt {self.prompt.name!r} has. {hint}")
        prompt = self.prompt.of(subject)
        classes = texts(record, "all_classes") if prompt.metric == "classification" else ()
        answers = texts(record, "answers")
        if classes and not set(answers) & set(classes):
            raise MalformedRecord(f"answers {list(answers)} are not among the {len(classes)} classes; correct them")
        return ClassItem(
            record_id(record, "_id"),
            text(record, "input") if text(record, "input").strip() else prompt.question,
            answers,
            subject=subject,
            context=self._cut(text(record, "context")),
            classes=classes,
        )

    def grade(self, item: ClassItem, response: str) -> Grade:
        prompt = self.prompt.of(item.subject)
        if prompt.first_line:  # a model that goes on with further examples is judged by its own answer
            response = without_thinking(response).split("\n")[0]
        if prompt.metric == "classification":
            return grading.classification(response, item.answers, item.classes)
        return METRICS[prompt.metric](response, item.answers)

    def max_new_tokens_of(self, item: Item) -> int:
        return self.same_limit or self.prompt.of(item.subject).max_new_tokens or self.max_new_tokens

    def _cut(self, context: str) -> str:
        limit = self.max_context_characters
        if limit is None or len(context) <= limit:
            return context
        half = limit // 2
        return context[: limit - half] + context[-half:]
