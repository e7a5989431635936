"""Files -> records, each with its place: JSON in every layout, CSV and TSV, Parquet.

Files of other shapes become the columns that the hub has for the same data, so that training and benchmarks read them
alike: SQuAD's articles, AI2's questions with a stem.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import charset_normalizer
import fsspec
import pyarrow.parquet as pq

from c2c_lightning.data.records import MalformedRecord, is_chat, unwritten

log = logging.getLogger(__name__)

Row = tuple[str, Any]  # where the record stands, and the record

# What a folder has beside its data.
METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
SEPARATORS, BETWEEN = ",;\t", re.compile(r"\s*(?:,\s*)?")
SEP = re.compile(r"sep=(.)", re.IGNORECASE)  # the line that tells Excel the separator
# What people save tables in where they do not save UTF-8. The whole list of the library has many of like letters, of
# which it takes a wrong one for a text of few accents.
ENCODINGS = ["cp1252", "mac_roman", "cp1251", "koi8_r", "gb18030", "big5", "cp932", "euc_kr"]
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
OPEN_QUOTE = 100  # lines that a row which is no CSV may have, or as many records would be lost as one
csv.field_size_limit(2**31 - 1)  # a document may stand in a cell


def json_rows(file: Path) -> Iterator[Row]:
    """A record a line; otherwise a list, or an object or several, over as many lines as they like."""
    with fsspec.open(str(file), "rb", compression="infer") as raw:
        mark = _mark(raw)
        lines = io.TextIOWrapper(raw, mark) if mark == "utf-16" else raw
        begin = len(codecs.BOM_UTF8) if mark == "utf-8-sig" else 0
        lines.seek(begin)
        start = list(islice((line for line in lines if line.strip()), 2))
        lines.seek(begin)
        if _is_read_whole(start):
            text = lines.read()
            records = _records(text if isinstance(text, str) else text.decode())
            yield from ((f"{file} record {i}", record) for i, record in enumerate(records))
            return
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield from ((f"{file}:{number}", record) for record in _questions(_parsed(line)))


def csv_rows(file: Path) -> Iterator[Row]:
    """A record a row, all columns as text; None for an empty cell."""
    with fsspec.open(str(file), "rb", compression="infer") as raw:
        lines = io.TextIOWrapper(raw, _encoding(file, raw), errors="surrogateescape", newline="")
        begin, skipped = lines.readline().rstrip("\r\n"), 0
        if told := SEP.fullmatch(begin.strip('"')):
            separator, skipped = told[1], 1
        else:
            separator = max(SEPARATORS, key=begin.count)
            lines.seek(0)
        reader = csv.DictReader(lines, delimiter=separator, strict=True)
        reader.fieldnames = names = [name.strip() for name in reader.fieldnames or ()]
        if twice := {name for name in names if name and names.count(name) > 1}:
            raise ValueError(f"its columns {sorted(twice)} are there twice")
        while True:
            first = skipped + reader.reader.line_num + 1
            try:
                record: Any = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                last = skipped + reader.reader.line_num
                if last - first > OPEN_QUOTE:
                    raise ValueError(f"the row of line {first} has an open quote, and ends in line {last}") from error
                record = MalformedRecord(f"not CSV: {error}, in a row that ends in line {last}")
            else:
                record = _checked_row(record)
            yield f"{file}:{first}", record


def parquet_rows(file: Path) -> Iterator[Row]:
    number = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=1000):
        for record in batch.to_pylist():
            yield f"{file} row {number}", record
            number += 1


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".parquet": parquet_rows,
}
NAME = re.compile(rf"(.+?)({'|'.join(map(re.escape, READERS))})(\.gz|\.bz2|\.xz)?", re.IGNORECASE)


def is_readable(file: str | Path) -> bool:
    """Whether the name says that the file has records."""
    return NAME.fullmatch(Path(file).name) is not None


def data_files(folder: Path) -> list[Path]:
    """The files of a folder that have records: not hidden ones, nor what `datasets` writes beside its data."""
    files = (file for file in folder.rglob("*") if is_readable(file) and file.name not in METADATA)
    return sorted(f for f in files if not any(p.startswith((".", "__")) for p in f.relative_to(folder).parts))


def stem(file: str | Path) -> str:
    """The file's name without what says how it is read."""
    name = Path(file).name
    match = NAME.fullmatch(name)
    return match[1] if match else name


def file_rows(file: Path) -> Iterator[Row]:
    """Every record of a file; MalformedRecord for one that cannot be read while the others can.

    Raises:
        Exception: of whatever kind, where the file is damaged.
    """
    match = NAME.fullmatch(file.name)
    assert match, file
    return READERS[match[2].lower()](file)


def hub_columns(record: Any) -> Any:
    """A record with the hub's columns: AI2's stem and choices, SQuAD's answers as a list of texts, `reference`.

    A list of turns becomes `messages`.
    """
    if is_chat(record):
        return {"messages": record}
    if not isinstance(record, dict):
        return record
    question, answers = record.get("question"), unwritten(record.get("answers"))
    if isinstance(question, dict) and "stem" in question:
        given = [choice for choice in question.get("choices") or [] if isinstance(choice, dict)]
        choices = {"text": [c.get("text") for c in given], "label": [c.get("label") for c in given]}
        record = {**record, "question": question["stem"], **({"choices": choices} if given else {})}
    if isinstance(answers, dict) and "text" in answers and "reference" not in record:
        texts = answers["text"] or ()
        record = {**record, "reference": list(dict.fromkeys([texts] if isinstance(texts, str) else texts))}
    return record


def _checked_row(row: dict[Any, Any]) -> dict[str, str | None] | MalformedRecord:
    if None in row or None in row.values():
        return MalformedRecord(f"it has too {'many' if None in row else 'few'} cells for its table's columns")
    try:
        "".join(row.values()).encode()
    except UnicodeEncodeError:
        return MalformedRecord("not UTF-8, as the rest of the table is")
    return {name: cell or None for name, cell in row.items()}


def _parsed(line: str | bytes) -> Any:
    try:
        return json.loads(line.strip().rstrip(b"," if isinstance(line, bytes) else ","))
    except (ValueError, RecursionError) as error:  # bad JSON, bytes that are not UTF-8, a thousand brackets
        return MalformedRecord(f"not JSON: {error}")


def _is_read_whole(start: Sequence[str | bytes]) -> bool:
    """Whether a file that begins with these lines, two or all that it has, does not have a record in each."""
    if not start:
        return False
    first, *second = map(_parsed, start)
    if isinstance(first, MalformedRecord):
        line = start[0].strip()
        is_object_of_lines = bool(second) and (line[-1:] in ("[", b"[") or not isinstance(second[0], dict))
        return line[:1] in ("[", b"[") or (line[:1] in ("{", b"{") and is_object_of_lines)
    return not second and _list_in(first) is not None


def _list_in(value: Any) -> list[Any] | None:
    """The list of records that a file's only value is, or that it has around it."""
    inner = value.get("data") if isinstance(value, dict) else value
    if not isinstance(inner, list) or is_chat(inner):
        return None
    return inner if not inner or any(isinstance(record, dict) or is_chat(record) for record in inner) else None


def _records(text: str) -> Iterator[Any]:
    """The JSON values of a text; of one that is a list, or an object around one (`data`), what is in the list."""
    decoder, values, at = json.JSONDecoder(), [], len(BETWEEN.match(text)[0])
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError as error:
            if not values:
                raise
            # The objects behind it are not lost with it: the next one begins a line.
            following = text.find("\n{", at + 1)
            value, at = MalformedRecord(f"not JSON: {error}"), len(text) if following < 0 else following
        values.append(value)
        at += len(BETWEEN.match(text, at)[0])
    inner = _list_in(values[0]) if len(values) == 1 else None
    for value in values if inner is None else inner:
        yield from _questions(value)


def _questions(record: Any) -> Iterator[Any]:
    """The questions of an article, as SQuAD has them; any other record as it is."""
    if not isinstance(record, dict) or not isinstance(record.get("paragraphs"), list):
        yield record
        return
    try:
        for paragraph in record["paragraphs"]:
            for question in paragraph["qas"]:
                answers = {"text": [answer["text"] for answer in question.get("answers") or ()]}
                yield {**question, "context": paragraph["context"], "answers": answers}
    except (KeyError, TypeError) as error:
        yield MalformedRecord(f"an article that is not as SQuAD has them: {error!r}")


def _mark(raw: Any) -> str | None:
    start = raw.read(4)
    raw.seek(0)
    return next((encoding for bom, encoding in BOMS.items() if start.startswith(bom)), None)


def _encoding(file: Path, raw: Any) -> str:
    """The encoding of a table; it is logged if it has to be guessed."""
    encoding = _mark(raw) or "utf-8"
    if encoding == "utf-16":
        return encoding
    num_accented, others = 0, []
    for line in raw:
        if not line.isascii():
            num_accented += 1
            with suppress(UnicodeDecodeError):
                line.decode()
                continue
            others.append(line)
    raw.seek(0)
    # Where most lines are UTF-8, so is the file, and the others are damaged.
    if len(others) <= num_accented / 2:
        return encoding
    # Plain lines tell nothing, and many of them hide what the others tell.
    best = charset_normalizer.from_bytes(b"".join(others[:1000]), cp_isolation=ENCODINGS).best()
    if best is None:
        return encoding
    log.warning("%s is not UTF-8: it is read as %s", file, best.encoding)
    return best.encoding
