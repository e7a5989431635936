"""C-Eval: Chinese examinations in 52 subjects (arXiv 2305.08322)."""

from __future__ import annotations

from typing import Any

from c2c_lightning.evaluation.benchmarks.by_subject import BySubject
from c2c_lightning.evaluation.benchmarks.columns import record_id, text
from c2c_lightning.evaluation.benchmarks.item import Item


class CEval(BySubject):
    """Questions with four choices; the test split's answers are not public, so the default is `val`.

    Args:
        path: a hub id, or files with its columns.
        split: of the hub dataset.
        name: in file names and metrics.
        prompt: a shipped prompt's name or a path to a YAML file.
        subjects: read only these; None for all.
        **kwargs: as for every benchmark.
    """

    exemplar_split = "dev"

    def __init__(
        self,
        path: str | list[str] = "ceval/ceval-exam",
        split: str = "val",
        name: str = "ceval",
        prompt: str = "choices_chinese",
        subjects: list[str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(path, subjects, split=split, name=name, prompt=prompt, **kwargs)

    def to_item(self, record: dict[str, Any], source: str) -> Item:
        subject, number = record["subject"], record_id(record)
        choices = tuple(text(record, letter) for letter in "ABCD")
        # Numbers begin anew in every subject.
        return Item(
            f"{subject}/{number}" if number else "",
            text(record, "question"),
            (text(record, "answer").strip(),),
            choices,
            subject,
        )
