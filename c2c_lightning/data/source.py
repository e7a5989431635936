"""Where records come from: files, folders, saved datasets and the hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from c2c_lightning.data import readers, records
from c2c_lightning.data.readers import READERS, Row, data_files, file_rows, hub_columns, is_readable
from c2c_lightning.data.records import (
    NO_ANSWER,
    Context,
    Example,
    MalformedRecord,
    MalformedTally,
    Supervise,
    Unanswered,
    to_examples,
    to_messages,
)
from c2c_lightning.errors import UserError, first_line

log = logging.getLogger(__name__)

# Words in the names of files and folders that say which split they are of, as `datasets` has them.
SPLITS = ("train training", "validation valid val dev", "test testing eval evaluation")
KINDS = ", ".join(READERS)
SAME_SPLIT = {word: words.split() for words in SPLITS for word in words.split()}


@dataclass(frozen=True)
class Source:
    """Records by name, read in a fixed order as often as asked.

    Attributes:
        path: a file of a kind of `READERS`, a folder of them, one that `datasets` saved, or a hub id; or several.
        split: what to read of a hub dataset, of a saved dataset of several splits, or of a folder whose files have
            `train`, `validation` or `test` in their names: `train`, `train[:5]`, `train[10%:20%]`, `train+test`.
            Where there are no splits, the part in brackets alone counts.
        subset: of a hub dataset that has several.
        streaming: do not download a hub dataset first.
        columns: names of the prompt and response columns; None to recognise them.
        supervise: the last assistant turn, or every one.
        prefix: of the configuration's keys for path and split, for messages.
        context: see `to_messages`.
    """

    path: str | list[str]
    split: str = "train"
    subset: str | None = None
    streaming: bool = False
    columns: tuple[str, str] | None = None
    supervise: Supervise = "last"
    prefix: str = "data."
    context: Context = "both"

    def examples(self, tally: MalformedTally) -> Iterator[Example]:
        """All examples; what is left out is counted in `tally`, which stops when too much of it is malformed."""
        for source, record in self.rows():
            tally.seen += 1
            try:
                if isinstance(record, MalformedRecord):
                    raise record
                messages = to_messages(record, self.columns, self.context)
            except Unanswered:
                tally.unanswered += 1
                continue
            except MalformedRecord as reason:
                tally.skip(source, str(reason))
                continue
            yield from to_examples(messages, source, self.supervise)
        tally.check(final=True)
        if tally.unanswered:
            log.log(tally.level, NO_ANSWER, self.path, tally.unanswered)
        if tally.seen == tally.unanswered:
            what = "no question with an answer" if tally.seen else "no records"
            raise UserError(f"{self.prefix}path {self.path!r} has {what}.")

    def check(self) -> None:
        """Raises UserError if a path or split names nothing that can be read, before anything else is done."""
        for name, path in self._paths():
            if _exists(path):
                if not _is_saved_dataset(path):
                    self._warn_of_others(name, path)
            elif name.startswith((".", "/", "~")) or is_readable(name) or name.count("/") > 1:
                raise UserError(f"{self.prefix}path {name!r}: no such file or folder.")

    def versions(self) -> list[tuple[str, int, int]]:
        """Name, size and time of every file of the data, and of the code that reads it."""
        files = [Path(__file__), Path(readers.__file__), Path(records.__file__)]
        for name, path in self._paths():
            if _exists(path):
                files += [path, *sorted(path.rglob("*"))]
            else:
                files += [Path(file["filename"]) for file in self._from_hub(name).cache_files]
        return [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]

    def parts(self) -> Iterator[Source]:
        """A source for each of its files, saved datasets and hub datasets, in their order; slices are of each one."""
        for name, path in self._paths():
            if not _exists(path) or _is_saved_dataset(path):
                yield replace(self, path=name)
                continue
            for part, files in self._files(path):
                yield from (replace(self, path=str(file), split=part) for file in files)

    def shared(self, other: Source) -> str | None:
        """A file, or the same part of a dataset, that both read as a whole; None if there is none."""
        places = {part.place for part in self.parts()}
        return next((part.path for part in other.parts() if part.place in places), None)

    @property
    def place(self) -> tuple[Any, ...]:
        """Where the records of one of `parts` are: the same for every name that a file has, links included."""
        [(name, path)] = self._paths()
        if not _exists(path):
            return name, self.subset, self.split
        stat = path.stat()
        return stat.st_dev, stat.st_ino, self.split.partition("[")[2] if path.is_file() else self.split

    def rows(self) -> Iterator[Row]:
        """Every record, with the file and line that it stands in; MalformedRecord for one that is none."""
        yield from ((place, hub_columns(record)) for place, record in self._rows())

    def _rows(self) -> Iterator[Row]:
        for name, path in self._paths():
            if not _exists(path):
                yield from _numbered(name, self._from_hub(name))
            elif _is_saved_dataset(path):
                yield from self._saved_rows(name, path)
            else:
                for part, files in self._files(path):
                    yield from _sliced(part, lambda files=files: self._file_rows(files))

    def _paths(self) -> list[tuple[str, Path]]:
        names = [self.path] if isinstance(self.path, str) else self.path
        return [(name, Path(name).expanduser()) for name in names]

    def _from_hub(self, name: str) -> Any:
        try:
            return datasets.load_dataset(name, self.subset, split=self.split, streaming=self.streaming)
        except Exception as error:  # the hub's client has many of its own
            raise UserError(
                f"{self.prefix}path {name!r} (subset {self.subset!r}, split {self.split!r}) is no file or folder "
                f"here, and as a hub id: {first_line(error)}"
            ) from error

    def _saved_rows(self, name: str, path: Path) -> Iterator[Row]:
        with self._readable(name):
            saved = datasets.load_from_disk(str(path))
            tables = saved if isinstance(saved, datasets.DatasetDict) else {None: saved}
            for part, splits in self._of_split(name, {split: split for split in tables}):
                for split in splits:
                    yield from _sliced(part, lambda split=split: _numbered(name, tables[split]))

    def _file_rows(self, files: list[Path]) -> Iterator[Row]:
        for file in files:
            with self._readable(str(file)):
                yield from file_rows(file)

    def _files(self, path: Path) -> list[tuple[str, list[Path]]]:
        """The files to read, by the part of `split` that names them."""
        if path.is_file():
            if not is_readable(path):
                raise UserError(
                    f"{self.prefix}path {str(path)!r}: give one of {KINDS}, not {path.suffix or 'a file without suffix'}."
                )
            return self._of_split(str(path), {path: None})  # whoever names a file means it
        files = data_files(path)
        if not files:
            raise UserError(f"{self.prefix}path {str(path)!r}: the folder has none of {KINDS}.")
        return self._of_split(str(path), {file: _split_in(file.relative_to(path)) for file in files})

    def _warn_of_others(self, name: str, path: Path) -> None:
        read = {file for _, files in self._files(path) for file in files}
        others = [file for file in data_files(path) if file not in read and not _split_in(file.relative_to(path))]
        if others:
            left_out = ", ".join(str(file.relative_to(path)) for file in others[:5])
            log.warning("%s: %d files have no split in their names and are left out: %s", name, len(others), left_out)

    def _of_split(self, name: str, split_of: Mapping[Any, str | None]) -> list[tuple[str, list[Any]]]:
        """Those files or tables of a dataset that are asked for, by the part of `split` that does so."""
        parts = [part.strip() for part in self.split.split("+")]
        there = {split for split in split_of.values() if split}
        names = [part.partition("[")[0] for part in parts]
        if not there and len(set(names)) > 1:
            raise UserError(f"{self.prefix}split is {self.split!r}, but {name!r} has no splits: name one.")
        chosen = []
        for part, split in zip(parts, names):
            try:
                _instruction(part)
            except (ValueError, AssertionError) as error:
                raise UserError(
                    f"{self.prefix}split is {self.split!r}: give a split, or a part of one as in train[:500]."
                ) from error
            found = {split} & there or there.intersection(SAME_SPLIT.get(split, ())) if there else {None}
            if not found:
                raise UserError(f"{self.prefix}split is {self.split!r}, but {name!r} has {sorted(there)}.")
            chosen.append((part, [of for of, its_split in split_of.items() if its_split in found]))
        return chosen

    @contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # readers of damaged files raise whatever they stumble over
            raise UserError(f"{self.prefix}path: {name} cannot be read: {first_line(error)}") from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, or in a folder that may not be read
        return False


def _split_in(file: Path) -> str | None:
    """The split that a file's path names, the last one if there are several."""
    words = re.findall(r"[a-z]+", str(file).lower())
    return next((word for word in reversed(words) if word in SAME_SPLIT), None)


def _instruction(part: str) -> datasets.ReadInstruction:
    """Which rows a part of a split such as `train[:5]` names, whatever the split is called."""
    _, bracket, numbers = part.partition("[")
    return datasets.ReadInstruction.from_spec("any" + bracket + numbers)


def _sliced(part: str, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    if "[" not in part:
        yield from rows()
        return
    number = sum(1 for _ in rows())
    [chosen] = _instruction(part).to_absolute({"any": number})
    yield from islice(rows(), chosen.from_, max(chosen.from_, chosen.to))


def _numbered(name: str, rows: Any) -> Iterator[Row]:
    yield from ((f"{name} row {i}", record) for i, record in enumerate(rows))


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()
