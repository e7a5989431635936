"""The records of a benchmark's files and hub datasets, each with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from c2c_lightning.data.readers import stem
from c2c_lightning.data.source import Source
from c2c_lightning.errors import UserError, first_line


class Row(NamedTuple):
    """A record and where it stands.

    Attributes:
        stem: of its file, or the hub subset's name.
        number: in that file or subset, from 0.
        source: file and line, for messages.
        record: usually a dict of its columns; MalformedRecord where a line is not JSON.
    """

    stem: str
    number: int
    source: str
    record: Any


def read_rows(source: Source, subsets: Callable[[str], list[str | None]]) -> Iterator[Row]:
    """Every record of every file and dataset of a source, of hub datasets those subsets that `subsets` names."""
    for part in source.parts():
        if is_local(part.path):
            yield from _rows_of(stem(part.path), part)
        else:
            for subset in subsets(part.path):
                yield from _rows_of(subset or stem(part.path), replace(part, subset=subset))


def subset_names(hub_id: str, key: str) -> list[str]:
    """The subsets of a hub dataset.

    Raises:
        UserError: there is no such dataset, or no network; `key` is the configuration's for messages.
    """
    try:
        return datasets.get_dataset_config_names(hub_id)
    except (OSError, ValueError) as error:  # whatever the hub client raises is one of them
        raise UserError(f"{key} {hub_id!r} is no file or folder here, and as a hub id: {first_line(error)}") from error


def is_local(path: str) -> bool:
    return Path(path).expanduser().exists()


def _rows_of(stem: str, source: Source) -> Iterator[Row]:
    for number, (place, record) in enumerate(source.rows()):
        yield Row(stem, number, place, record)
