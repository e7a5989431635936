"""Benchmarks of many subjects, each a hub subset or a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from c2c_lightning.data.source import Source
from c2c_lightning.errors import UserError, meant
from c2c_lightning.evaluation.benchmarks.base import Benchmark
from c2c_lightning.evaluation.benchmarks.reading import Row, read_rows, subset_names


class BySubject(Benchmark):
    """Reads every subset of a hub dataset, or every file of a folder, as a subject.

    A record's own subject wins; otherwise it is the stem of its file or the subset's name. Either way `to_item`
    finds it under `subject`.

    Args:
        path: files, folders or hub ids, as for every benchmark.
        subjects: read only these; None for all.
        **kwargs: as for every benchmark.
    """

    # Where a record names its own subject.
    subject_column = "subject"

    def __init__(self, path: str | list[str], subjects: list[str] | None = None, **kwargs: Any):
        super().__init__(path, **kwargs)
        if subjects == []:
            raise UserError(f"{self.name}.subjects is empty: name one, or give null for all.")
        self.subjects = subjects

    def read(self, source: Source) -> Iterator[Row]:
        seen = set()
        for row in read_rows(source, self.subsets):
            if isinstance(row.record, dict):
                subject = self.subject_of(str(row.record.get(self.subject_column) or row.stem))
                seen.add(subject)
                if self.subjects is not None and subject not in self.subjects:
                    continue
                row = row._replace(record={**row.record, "subject": subject})
            yield row
        self._check_subjects(seen)

    def subsets(self, hub_id: str) -> list[str | None]:
        if self.subset:
            return [self.subset]
        names = [name for name in subset_names(hub_id, f"{self.name}.path") if self.is_subject(name)]
        self._check_subjects({self.subject_of(name) for name in names})
        return [name for name in names if self.subjects is None or self.subject_of(name) in self.subjects]

    def is_subject(self, subset: str) -> bool:
        """Whether a subset of the hub dataset belongs to the benchmark."""
        return True

    def subject_of(self, name: str) -> str:
        """The subject's name, from that of its file or subset."""
        return name

    def _check_subjects(self, known: set[str]) -> None:
        for subject in self.subjects or []:
            if subject not in known:
                hint = meant(subject, known, f"There are {', '.join(sorted(known))}.")
                raise UserError(f"{self.name}.subjects has {subject!r}, which the records have not. {hint}")
