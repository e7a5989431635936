"""OpenBookQA: elementary science questions that need a fact and common sense (arXiv 1809.02789)."""

from __future__ import annotations

from typing import Any

from c2c_lightning.evaluation.benchmarks.base import Benchmark
from c2c_lightning.evaluation.benchmarks.columns import labelled_choices, record_id, text
from c2c_lightning.evaluation.benchmarks.item import Item


class OpenBookQA(Benchmark):
    """Questions with four choices, asked without the book.

    Args:
        path: a hub id, or files with its columns.
        name: in file names and metrics.
        subset: of the hub dataset.
        **kwargs: as for every benchmark.
    """

    exemplar_split = "train"

    def __init__(
        self,
        path: str | list[str] = "allenai/openbookqa",
        name: str = "openbookqa",
        subset: str = "main",
        **kwargs: Any,
    ):
        super().__init__(path, name=name, subset=subset, **kwargs)

    def to_item(self, record: dict[str, Any], source: str) -> Item:
        choices, letter = labelled_choices(record)
        return Item(record_id(record), text(record, "question_stem"), (letter,), choices)
