"""Reading back what was written, checked against a schema, and writing a file as a whole or not at all.

Every file of ours that is read again (configs of fusers, sweep states, answers, results, recipes) is read here, so a
damaged one ends in one message that names the file, the place in it and the remedy. pydantic does the checking.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from c2c_lightning.errors import UserError, first_line

T = TypeVar("T")
PROJECT = Path(__file__).parents[1]


def read_json(file: Path, schema: type[T], what: str, remedy: str = "") -> T:
    """A JSON file, checked.

    Args:
        file: to read.
        schema: any type that pydantic can check: a TypedDict, a dataclass, `dict[str, list[int]]`.
        what: the file is to the user, such as "fuser", for the message.
        remedy: a sentence that says what to do about a damaged one.

    Raises:
        UserError: it cannot be read, is no JSON, or does not have the schema's shape; where and why.
    """
    return check_json(read_bytes(file, what), schema, f"{what} {file}", remedy)


def read_yaml(file: Path, schema: type[T], what: str, remedy: str = "") -> T:
    """A YAML file, checked; arguments and errors as of `read_json`."""
    try:
        value = yaml.safe_load(read_bytes(file, what).decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError
        raise UserError(f"{what} {file} is no YAML: {first_line(error)}. {remedy}".rstrip()) from error
    return checked(value, schema, f"{what} {file}", remedy)


def read_json_lines(file: Path, schema: type[T], what: str, remedy: str = "") -> list[T]:
    """A file with a JSON value on each line, checked; arguments and errors as of `read_json`.

    A last line without its end is being written, or was cut off by a kill, and is left out.
    """
    lines = read_bytes(file, what).split(b"\n")[:-1]
    return [check_json(line, schema, f"{what} {file}, line {n}", remedy) for n, line in enumerate(lines, 1)]


def cut_unfinished_line(file: Path, what: str) -> None:
    """Removes a last line that a kill cut off, so that what is added begins a line of its own.

    Only for whoever alone writes to the file; a UserError if it cannot be read or written.
    """
    content = read_bytes(file, what)
    if content.endswith(b"\n") or not content:
        return
    try:
        os.truncate(file, content.rfind(b"\n") + 1)
    except OSError as error:
        raise UserError(f"{what} {file} cannot be written: {error.strerror or error}.") from error


def check_json(text: str | bytes, schema: type[T], where: str, remedy: str = "") -> T:
    """A JSON text, checked; `where` begins the message."""
    try:
        return _adapter(schema).validate_json(text)
    except ValidationError as error:
        raise UserError(_message(error, where, remedy)) from error


def checked(value: Any, schema: type[T], where: str, remedy: str = "") -> T:
    """A value that was parsed already, checked; `where` begins the message."""
    try:
        return _adapter(schema).validate_python(value)
    except ValidationError as error:
        raise UserError(_message(error, where, remedy)) from error


def read_bytes(file: Path, what: str) -> bytes:
    """A file's content; a UserError if it is not there, is a folder, or may not be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{what} {file} cannot be read: {error.strerror or error}.") from error


PATHS = (".", "/", "~", "runs/")  # what no hub id begins with; the last is where our runs lie


def find_path(name: str, what: str) -> Path | None:
    """A file or folder, looked up from the working folder and then from the project's; None for what may be a hub id.

    Raises:
        UserError: `name` can only be meant as a path, and nothing is there.
    """
    for path in (Path(name).expanduser(), PROJECT / name):
        if path.exists():
            return path
    if name.startswith(PATHS) or name.count("/") != 1 or name.endswith(".gguf"):
        raise UserError(f"{what} {name!r}: no such folder. Give a folder's path or a hub id (owner/name).")
    return None


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that is to be there as a whole or not at all, also after a power cut.

    Raises UserError if the disk is full, or the folder may not be written to.
    """
    # In the same folder: a rename is atomic only within one file system. Two processes must not share a part file.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)  # a folder may still make room until here
    except IsADirectoryError as error:
        raise UserError(f"{path} cannot be written: it is a folder. Name a file.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Where to write the files of a folder that belong together, so that a reader sees all of them or is missing one.

    What else is in the folder stays. Raises UserError if the disk is full, or the folder may not be written to.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        files = sorted(unfinished.iterdir())
        for file in unfinished.rglob("*"):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        try:
            unfinished.rename(path)
        except OSError:
            # It is there already: the first file goes first and comes last, so that old and new are never mixed.
            path.mkdir(exist_ok=True)
            for file in files:
                (path / file.name).unlink(missing_ok=True)
            for file in reversed(files):
                file.rename(path / file.name)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text that is there as a whole or not at all."""
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def json_text(value: Any, indent: int | None = 2) -> str:
    """A value as JSON, in which a number that is not finite is null: JSON has no NaN."""
    return to_json(value, indent=indent, inf_nan_mode="null").decode("utf-8") + "\n"


def json_digest(value: Any) -> str:
    """The same for values that are the same as JSON; what JSON does not have counts as its text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@cache
def _adapter(schema: Any) -> TypeAdapter:
    return TypeAdapter(schema)


def _message(error: ValidationError, where: str, remedy: str) -> str:
    """The first thing that is wrong: its place, the value found there, and what was expected."""
    # Of a value that may have several types, each was tried; the deepest fault is in the one that was meant.
    first = max(error.errors(include_url=False), key=lambda fault: len(fault["loc"]))
    place = ".".join(str(part) for part in first["loc"])
    nothing = first["type"] == "missing" or (isinstance(first["input"], bytes | str) and not place)
    found = "" if nothing else f", not {' '.join(repr(first['input']).split()):.80}"
    return f"{where} is damaged: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}{found}. {remedy}".rstrip()
