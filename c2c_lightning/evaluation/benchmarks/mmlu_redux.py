"""MMLU-Redux: MMLU's questions, looked through by hand (arXiv 2406.04127)."""

from __future__ import annotations

from typing import Any

from c2c_lightning.data.records import MalformedRecord
from c2c_lightning.evaluation.benchmarks.by_subject import BySubject
from c2c_lightning.evaluation.benchmarks.columns import column, letter_at, record_id, text, texts
from c2c_lightning.evaluation.benchmarks.item import Item
from c2c_lightning.evaluation.benchmarks.meant import all_meant

CORRECTED = ("wrong_groundtruth", "multiple_correct_answers")
UNCLEAR = ("bad_question_clarity", "bad_options_clarity", "expert")


class MMLURedux(BySubject):
    """Questions with four choices in 57 subjects, with MMLU's mistakes corrected.

    Questions without a correct answer are left out, as in the C2C paper. Where the hand check found a wrong or a
    second right answer, its correction counts; one that cannot be read leaves the question out.

    Args:
        path: a hub id, or files with its columns.
        name: in file names and metrics.
        subjects: read only these; None for all.
        **kwargs: as for every benchmark.
    """

    def __init__(
        self,
        path: str | list[str] = "edinburgh-dawg/mmlu-redux-2.0",
        name: str = "mmlu_redux",
        subjects: list[str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(path, subjects, name=name, **kwargs)

    def to_item(self, record: dict[str, Any], source: str) -> Item | None:
        question, choices, error = text(record, "question"), texts(record, "choices"), text(record, "error_type")
        if error == "no_correct_answer":
            return self.drop("no correct answer", source)
        if error in CORRECTED:
            answers = all_meant(column(record, "correct_answer"), choices)
            if not answers:
                return self.drop("correction cannot be read", source)
        elif error == "ok" or error in UNCLEAR:
            answers = (letter_at(column(record, "answer"), choices),)
        else:
            known = ", ".join(("ok", "no_correct_answer", *CORRECTED, *UNCLEAR))
            raise MalformedRecord(f"error_type {error!r} is none of {known}; correct it")
        return Item(record_id(record), question, answers, choices, record["subject"])
