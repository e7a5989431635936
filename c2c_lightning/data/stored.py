"""Examples on disk, memory-mapped, so that RAM holds none of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError

from c2c_lightning.data.records import NO_ANSWER, Example, MalformedTally
from c2c_lightning.data.source import Source
from c2c_lightning.errors import UserError

log = logging.getLogger(__name__)

COLUMNS = ("record", "source", "messages", "prompt_characters", "response_characters")
# The record of a row that only says what is wrong with one, and of one that says how many questions have no answer.
MALFORMED, UNANSWERED = -1, -2


class StoredExamples(Sequence[Example]):
    """Some or all examples of a table that `datasets` keeps in its cache.

    Args:
        table: as `of` makes it.
        places: the rows to take; None for all.
    """

    def __init__(self, table: datasets.Dataset, places: np.ndarray | None = None):
        self.table = table
        self.places = np.arange(len(table)) if places is None else places

    @classmethod
    def of(cls, source: Source) -> StoredExamples:
        """All examples of a source, read once for as long as its files stay the same; names the malformed records."""
        # As text: `datasets` takes a list for shards, and would read the source once for each.
        kwargs = {"source": source, "versions": json.dumps(source.versions())}
        try:
            stored = cls(datasets.Dataset.from_generator(_stored_rows, gen_kwargs=kwargs))
        except (DatasetGenerationError, OSError) as error:
            cause = error.__cause__ or error
            if isinstance(cause, UserError):
                raise cause from None
            if isinstance(cause, OSError):
                raise UserError(
                    f"{datasets.config.HF_DATASETS_CACHE}, where examples are kept, cannot be written: {cause}. "
                    "Make room, or name another folder in HF_DATASETS_CACHE."
                ) from error
            raise
        record = stored._column("record")
        malformed = record == MALFORMED
        for i in np.flatnonzero(malformed):
            row = stored.table[int(i)]
            log.warning("skipped %s: %s", row["source"], row["messages"])
        if malformed.any():
            log.warning("%s: %d malformed records were skipped", source.path, malformed.sum())
        for i in np.flatnonzero(record == UNANSWERED):
            log.warning(NO_ANSWER, source.path, stored.table[int(i)]["messages"])
        return cls(stored.table, stored.places[record >= 0])

    def hold_out(self, fraction: float) -> tuple[StoredExamples, StoredExamples]:
        """(Kept, held out) examples; see `held_out`."""
        held = held_out(self._column("record"), fraction)
        return StoredExamples(self.table, self.places[~held]), StoredExamples(self.table, self.places[held])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> Example:
        row = self.table[int(self.places[i])]
        return Example(json.loads(row["messages"]), row["source"])

    @property
    def lengths(self) -> np.ndarray:
        """(examples, 2) characters of prompt and response, without reading the examples."""
        return np.stack([self._column("prompt_characters"), self._column("response_characters")], axis=1)

    def _column(self, name: str) -> np.ndarray:
        return self.table.data.column(name).to_numpy()[self.places]


def held_out(records: np.ndarray, fraction: float) -> np.ndarray:
    """Which examples are for validation: those of a share of the records, at least one and not all of them.

    Whole records, as one conversation may give several examples that begin alike. Which ones must not depend on the
    run's seed, or runs could not be compared.

    Args:
        records: (examples,) the record that each is of.
        fraction: share of the records.

    Returns:
        (examples,) bool.
    """
    all_records = np.unique(records)
    number = min(max(1, round(len(all_records) * fraction)), len(all_records) - 1)
    return np.isin(records, np.random.default_rng(0).permutation(all_records)[:number])


def _stored_rows(source: Source, versions: str) -> Iterator[dict[str, Any]]:
    record, last = -1, None
    tally = MalformedTally(str(source.path), logging.DEBUG)  # named when the table is used
    for example in source.examples(tally):
        record += example.source != last
        last = example.source
        yield dict(zip(COLUMNS, (record, example.source, json.dumps(example.messages), *example.lengths)))
    for malformed, reason in tally.skipped:
        yield dict(zip(COLUMNS, (MALFORMED, malformed, reason, 0, 0)))
    if tally.unanswered:
        yield dict(zip(COLUMNS, (UNANSWERED, "", str(tally.unanswered), 0, 0)))
