"""Examples on disk, memory-mapped, so that RAM holds none of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np

from c2c_lightning.data.records import Example, MalformedTally
from c2c_lightning.data.source import Source


class StoredExamples(Sequence[Example]):
    """A sequence of examples in a table that `datasets` keeps in its cache."""

    def __init__(self, table: datasets.Dataset):
        self.table = table

    @classmethod
    def of(cls, source: Source) -> StoredExamples:
        """All examples of a source, read once for as long as its files stay the same."""
        table = datasets.Dataset.from_generator(
            _stored_rows, gen_kwargs={"source": source, "fingerprint": source.fingerprint()}
        )
        return cls(table)

    def select(self, places: np.ndarray) -> StoredExamples:
        return StoredExamples(self.table.select(places))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> Example:
        row = self.table[i]
        return Example(json.loads(row["messages"]), row["source"])

    @property
    def lengths(self) -> np.ndarray:
        """Characters of each example, without reading the examples."""
        return np.asarray(self.table.with_format("numpy")["num_characters"])


def _stored_rows(source: Source, fingerprint: Any) -> Iterator[dict[str, Any]]:
    for example in source.examples(MalformedTally(str(source.path))):
        yield {
            "source": example.source,
            "messages": json.dumps(example.messages),
            "num_characters": example.num_characters,
        }
