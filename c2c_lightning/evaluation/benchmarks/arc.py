"""ARC-Challenge: grade-school science questions that retrieval and word counts get wrong (arXiv 1803.05457)."""

from __future__ import annotations

from typing import Any

from c2c_lightning.evaluation.benchmarks.base import Benchmark
from c2c_lightning.evaluation.benchmarks.columns import labelled_choices, record_id, text
from c2c_lightning.evaluation.benchmarks.item import Item


class ARCChallenge(Benchmark):
    """Questions with three to five choices, whose labels 1-5 become letters.

    Args:
        path: a hub id, or files with its columns.
        name: in file names and metrics.
        subset: of the hub dataset; ARC-Easy is the other one.
        **kwargs: as for every benchmark.
    """

    exemplar_split = "train"

    def __init__(
        self,
        path: str | list[str] = "allenai/ai2_arc",
        name: str = "arc_challenge",
        subset: str = "ARC-Challenge",
        **kwargs: Any,
    ):
        super().__init__(path, name=name, subset=subset, **kwargs)

    def to_item(self, record: dict[str, Any], source: str) -> Item:
        choices, letter = labelled_choices(record)
        return Item(record_id(record), text(record, "question"), (letter,), choices)
