"""Where records come from: JSONL and Parquet files, folders, and the hub."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from c2c_lightning.data import records
from c2c_lightning.data.records import Example, MalformedRecord, MalformedTally, Supervise, to_examples, to_messages
from c2c_lightning.errors import UserError, first_line

JSON_LINES, PARQUET = (".jsonl", ".jsonl.gz", ".ndjson", ".json"), (".parquet",)


@dataclass(frozen=True)
class Source:
    """Records by name, read in a fixed order as often as asked.

    Attributes:
        path: a JSONL or Parquet file, a folder of them, a folder that `datasets` saved, or a hub id;
            or several of these.
        split: of a hub dataset or a saved dataset of several splits.
        subset: of a hub dataset that has several.
        streaming: do not download a hub dataset first.
        columns: names of the prompt and response columns, if they must be named.
        supervise: the last assistant turn, or every one.
        prefix: of the configuration's keys for path and split, for messages.
    """

    path: str | list[str]
    split: str = "train"
    subset: str | None = None
    streaming: bool = False
    columns: tuple[str, str] | None = None
    supervise: Supervise = "last"
    prefix: str = "data."

    def examples(self, tally: MalformedTally) -> Iterator[Example]:
        """All examples; malformed records are counted in `tally`, which stops when they are too many."""
        for source, record in self.rows():
            tally.seen += 1
            try:
                if isinstance(record, MalformedRecord):
                    raise record
                messages = to_messages(record, self.columns)
            except MalformedRecord as reason:
                tally.skip(source, str(reason))
                tally.check()
                continue
            yield from to_examples(messages, source, self.supervise)
        tally.check(final=True)
        if tally.seen == 0:
            raise UserError(f"{self.prefix}path {self.path!r} has no records.")

    def check(self) -> None:
        """Raises UserError if a path names nothing that can be read, before anything else is done."""
        for name, path in self._paths():
            if path.exists():
                if not _is_saved_dataset(path):
                    self._files(path)
            elif name.startswith((".", "/", "~")) or name.endswith(JSON_LINES + PARQUET) or name.count("/") > 1:
                raise UserError(f"{self.prefix}path {name!r}: no such file or folder.")

    def versions(self) -> list[tuple[str, int, int]]:
        """Name, size and time of every file of the data, and of the code that reads it."""
        files = [Path(__file__), Path(records.__file__)]
        for name, path in self._paths():
            if path.exists():
                files += [path, *sorted(path.rglob("*"))]
            else:
                files += [Path(file["filename"]) for file in self._from_hub(name).cache_files]
        return [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]

    def parts(self) -> Iterator[Source]:
        """A source for each of its files, saved datasets and hub datasets, in their order."""
        for name, path in self._paths():
            single = not path.exists() or _is_saved_dataset(path)
            names = [name] if single else [str(file) for file in self._files(path)]
            yield from (replace(self, path=name) for name in names)

    def _paths(self) -> list[tuple[str, Path]]:
        names = [self.path] if isinstance(self.path, str) else self.path
        return [(name, Path(name).expanduser()) for name in names]

    def rows(self) -> Iterator[tuple[str, Any]]:
        """Every record, with the file and line that it stands in; MalformedRecord for a line that is not JSON."""
        for name, path in self._paths():
            if not path.exists():
                yield from self._dataset_rows(name, self._from_hub(name))
            elif _is_saved_dataset(path):
                yield from self._dataset_rows(name, datasets.load_from_disk(str(path)))
            else:
                for file in self._files(path):
                    try:
                        yield from _parquet_rows(file) if file.name.endswith(PARQUET) else _json_rows(file)
                    except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException) as error:
                        raise UserError(f"{self.prefix}path: {file} cannot be read: {error}") from error

    def _from_hub(self, name: str) -> Any:
        try:
            return datasets.load_dataset(name, self.subset, split=self.split, streaming=self.streaming)
        except (OSError, ValueError) as error:  # whatever the hub client raises is one of them
            raise UserError(
                f"{self.prefix}path {name!r} (subset {self.subset!r}, split {self.split!r}) is no file or folder "
                f"here, and as a hub id: {first_line(error)}"
            ) from error

    def _dataset_rows(self, name: str, dataset: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(dataset, datasets.DatasetDict):
            if self.split not in dataset:
                raise UserError(f"{self.prefix}split is {self.split!r}, but {name!r} has {sorted(dataset)}.")
            dataset = dataset[self.split]
        for i, record in enumerate(dataset):
            yield f"{name} row {i}", record

    def _files(self, path: Path) -> list[Path]:
        if path.is_file():
            if not path.name.endswith(JSON_LINES + PARQUET):
                raise UserError(
                    f"{self.prefix}path {str(path)!r}: give JSONL or Parquet, "
                    f"not {path.suffix or 'a file without suffix'}."
                )
            return [path]
        files = sorted(f for f in path.rglob("*") if f.name.endswith(JSON_LINES + PARQUET))
        if not files:
            raise UserError(f"{self.prefix}path {str(path)!r}: the folder has no JSONL or Parquet file.")
        return files


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def _json_rows(file: Path) -> Iterator[tuple[str, Any]]:
    with fsspec.open(str(file), "rb", compression="infer") as lines:
        if file.suffix == ".json" and lines.read(100).lstrip().startswith(b"["):
            # One list of records, as Alpaca and ShareGPT are handed round; it has to be read whole.
            lines.seek(0)
            yield from ((f"{file} record {i}", record) for i, record in enumerate(json.load(lines)))
            return
        lines.seek(0)
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:  # bad JSON, or bytes that are not UTF-8
                record = MalformedRecord(f"not JSON: {error}")
            yield f"{file}:{number}", record


def _parquet_rows(file: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=1000):
        for record in batch.to_pylist():
            yield f"{file} row {number}", record
            number += 1
