"""Records come from files, folders and the hub alike, as a table or as a stream."""

from __future__ import annotations

import gzip
import json
import logging
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from some_data import pairs, write_jsonl

from c2c_lightning.data.records import Example, MalformedTally
from c2c_lightning.data.source import Source
from c2c_lightning.data.stored import StoredExamples
from c2c_lightning.errors import UserError

FORMATS = {
    "openai": {"messages": [{"role": "user", "content": "Six?"}, {"role": "assistant", "content": "6"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Six?"}, {"from": "gpt", "value": "6"}]},
    "alpaca": {"instruction": "Six?", "input": "", "output": "6"},
    "alpaca with input": {"instruction": "As a digit:", "input": "six", "output": "6"},
    "recognised pair": {"question": "Six?", "answer": "6"},
    "named pair": {"task": "Six?", "solution": "6"},
}


def save(folder: Path, store: str, records: list[dict]) -> str:
    """Writes records as `store` and gives the path to read them from."""
    if store == "jsonl":
        return write_jsonl(folder / "data.jsonl", records)
    if store == "json list":
        (folder / "data.json").write_text(json.dumps(records, indent=2))
        return str(folder / "data.json")
    if store == "gzipped jsonl":
        (folder / "data.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
        return str(folder / "data.jsonl.gz")
    if store == "parquet":
        pq.write_table(pa.Table.from_pylist(records), folder / "data.parquet")
        return str(folder / "data.parquet")
    if store == "folder":
        (folder / "data" / "b").mkdir(parents=True)
        write_jsonl(folder / "data" / "a.jsonl", records[:1])
        pq.write_table(pa.Table.from_pylist(records[1:]), folder / "data" / "b" / "rest.parquet")
        (folder / "data" / "README.md").write_text("Not data.")
        return str(folder / "data")
    table = datasets.Dataset.from_list(records)
    if store == "saved dataset":
        table.save_to_disk(folder / "data")
    else:
        datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(folder / "data")
    return str(folder / "data")


def stream(source: Source) -> list[Example]:
    return list(source.examples(MalformedTally("data")))


STORES = ["jsonl", "json list", "gzipped jsonl", "parquet", "folder", "saved dataset", "saved splits"]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_from_every_store_as_a_table_and_as_a_stream(name, store, tmp_path):
    prompt = "As a digit:\n\nsix" if name == "alpaca with input" else "Six?"
    path = save(tmp_path, store, [FORMATS[name]] * 3)
    source = Source(path, columns=("task", "solution") if name == "named pair" else None)
    read = list(StoredExamples.of(source))
    assert [(e.prompt, e.response) for e in read] == [([{"role": "user", "content": prompt}], "6")] * 3
    assert stream(source) == read
    assert len({e.source for e in read}) == 3


def test_several_paths_are_read_one_after_the_other(tmp_path):
    paths = [write_jsonl(tmp_path / f"{i}.jsonl", pairs(6)[i : i + 2]) for i in (0, 2, 4)]
    stored = StoredExamples.of(Source(paths))
    assert [e.response for e in stored] == [f"answer {i}" for i in range(6)]


def test_an_unknown_split_is_refused_with_those_that_there_are(tmp_path):
    path = save(tmp_path, "saved splits", [FORMATS["openai"]])
    with pytest.raises(ValueError, match=r"data\.split is 'dev', but .* has \['test', 'train'\]"):
        StoredExamples.of(Source(path, split="dev"))


def split_folder(folder: Path) -> Path:
    """Files of three splits, in the ways that data are handed round."""
    for name, numbers in {
        "chats_train.jsonl": range(10),
        "more/train-00001-of-00002.jsonl": range(10, 20),
        "val/part.jsonl": range(20, 24),
        "testing.jsonl": range(24, 30),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / name, [pairs(30)[i] for i in numbers])
    return folder


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train", range(20)),
        ("train[:5]", range(5)),
        ("train[8:12]", range(8, 12)),
        ("train[90%:]", range(18, 20)),
        ("train[-1:]", [19]),
        ("train[5:2]", []),
        ("validation", range(20, 24)),
        ("val", range(20, 24)),
        ("test[:2]+validation", [24, 25, 20, 21, 22, 23]),
    ],
)
def test_a_split_and_a_part_of_it_are_read_from_a_folder_and_a_saved_dataset_alike(split, numbers, tmp_path):
    folder = split_folder(tmp_path / "folder")
    saved = {name: list(Source(str(folder), name).rows()) for name in ("train", "validation", "test")}
    tables = {name: datasets.Dataset.from_list([record for _, record in rows]) for name, rows in saved.items()}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "saved")
    for path in (folder, tmp_path / "saved"):
        source = Source(str(path), split)
        source.check()
        assert [record["response"] for _, record in source.rows()] == [f"answer {i}" for i in numbers]


def test_a_part_is_taken_of_a_file_and_of_a_folder_whose_files_name_no_split(tmp_path):
    (tmp_path / "data").mkdir()
    paths = [write_jsonl(tmp_path / "data" / f"{name}.jsonl", pairs(8)) for name in "ab"]
    for path, number in ((paths[0], 6), (str(tmp_path / "data"), 12)):
        rows = list(Source(path, "train[:75%]").rows())
        assert len(rows) == number
    datasets.Dataset.from_list(pairs(8)).save_to_disk(tmp_path / "saved")
    assert len(list(Source(str(tmp_path / "saved"), "train[:3]").rows())) == 3
    assert len(list(Source(paths[0], "train[:2]+train[6:]").rows())) == 4


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("dev2", r"data\.split is 'dev2', but .* has \['testing', 'train', 'val'\]"),
        ("train[:x]", r"data\.split is 'train\[:x\]': give a split, or a part of one"),
        ("train+", "data.split is 'train\\+', but .* has"),
    ],
)
def test_a_split_that_is_not_there_is_refused_before_anything_is_read(split, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Source(str(split_folder(tmp_path)), split).check()


def test_two_splits_of_a_file_are_refused(tmp_path):
    file = write_jsonl(tmp_path / "data.jsonl", pairs(3))
    with pytest.raises(ValueError, match=r"data\.split is 'train\+test', but .* has no splits: name one"):
        Source(file, "train+test").check()


def test_a_hub_dataset_that_is_not_there_is_one_clear_error():
    for streaming in (False, True):
        source = Source("nobody/no-data-v1.5", streaming=streaming)
        source.check()
        with pytest.raises(ValueError, match=r"data.path 'nobody/no-data-v1.5' .* is no file or folder here, and as a"):
            stream(source)
    with pytest.raises(ValueError, match="is no file or folder here, and as a hub id"):
        StoredExamples.of(Source("nobody/no-data"))


def deep(levels: int = 20_000) -> str:  # more than any Python reads: 3.13 reads 5,000
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "caf\xe9", "response": "yes"}', "not JSON: 'utf-8' codec can't decode"),
        (b'{"prompt": "cut o', "not JSON"),
        (b"[1, 2]", "it is a list, not an object"),
        (b'{"prompt": "Six?", "response": ' + deep().encode() + b"}", "not JSON: maximum recursion depth"),
        (b'{"prompt": "Six?", "response": ' + deep(400).encode() + b"}", "the assistant's text has [[["),
        (b'{"prompt": "Six?", "response": "\\ud800"}', "the assistant's text is not Unicode"),
        (b'{"prompt": "Six?", "response": [{"type": "image", "text": "6"}]}', "the assistant's text has {"),
        (b'{"prompt": "Six?", "response": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
        (bytes(range(128, 256)), "not JSON: "),
        (b'{"prompt": "Six?"}', "are no known format"),
        (b'{"prompt": "Six?", "response": null}', "the assistant's text is None"),
        (b'{"messages": [{"role": "judge", "content": "Six?"}]}', "a turn of messages is by 'judge'"),
    ],
)
def test_a_malformed_record_is_skipped_and_logged_with_file_and_line(line, reason, tmp_path, caplog):
    records = pairs(150)
    file = write_jsonl(tmp_path / "data.jsonl", [*records[:41], line, *records[41:]])
    for _ in range(2):  # the second time from the table that the first one left
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            read = StoredExamples.of(Source(file))
        assert [e.response for e in read] == [f"answer {i}" for i in range(150)]
        message, count = caplog.messages
        assert message.startswith(f"skipped {file}:42: ")
        assert reason in message
        assert "1 malformed records were skipped" in count


def test_more_than_one_malformed_record_in_a_hundred_stop_with_the_first_five(tmp_path):
    file = write_jsonl(tmp_path / "data.jsonl", [*pairs(93), *[b"{"] * 7])
    for read in (stream, StoredExamples.of):
        with pytest.raises(ValueError, match=r"7 of 100 records are malformed, more than 1%. The first:") as error:
            read(Source(file))
        assert [f"{file}:{line}: " in str(error.value) for line in range(94, 101)] == [True] * 5 + [False] * 2


def test_a_stream_stops_early_when_enough_records_are_malformed(tmp_path):
    file = write_jsonl(tmp_path / "data.jsonl", [*pairs(900), *[b"{"] * 5000])
    with pytest.raises(ValueError, match="of 1000 records are malformed"):
        stream(Source(file))


def test_a_damaged_file_is_one_error_that_names_it(tmp_path):
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "Six?", "response": "6"}\n' * 1000)[:40])
    (tmp_path / "text.parquet").write_text("prompt,response")
    (tmp_path / "cut.json").write_text('[{"prompt": "Six?", "response"')
    (tmp_path / "deep.json").write_text(deep())
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder.jsonl" / "text.parquet").mkdir()
    for name in ("dataset_dict.json", "state.json"):
        (tmp_path / name.partition(".")[0]).mkdir()
        (tmp_path / name.partition(".")[0] / name).write_text("\0 garbage")
    datasets.Dataset.from_list(pairs(3)).save_to_disk(tmp_path / "arrow")
    next((tmp_path / "arrow").glob("*.arrow")).write_bytes(b"garbage")
    for file in (
        "cut.jsonl.gz",
        "text.parquet",
        "cut.json",
        "deep.json",
        "folder.jsonl",
        "dataset_dict",
        "state",
        "arrow",
    ):
        with pytest.raises(UserError, match=f"data.path: .*{file}.* cannot be read: "):
            StoredExamples.of(Source(str(tmp_path / file)))


def test_a_file_that_has_changed_is_read_again_and_one_that_has_not_is_not(tmp_path):
    file = tmp_path / "data.jsonl"
    source = Source(write_jsonl(file, pairs(3)))
    first = StoredExamples.of(source)
    assert StoredExamples.of(source).table.cache_files == first.table.cache_files
    write_jsonl(file, pairs(9)[6:])
    os.utime(file, ns=(0, 0))
    assert [e.response for e in StoredExamples.of(source)] == ["answer 6", "answer 7", "answer 8"]


def test_a_path_in_the_home_folder_is_found(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "data.jsonl", pairs(3))
    monkeypatch.setenv("HOME", str(tmp_path))
    source = Source("~/data.jsonl")
    source.check()
    assert len(StoredExamples.of(source)) == 3


def test_lengths_are_those_of_the_examples_of_a_part(tmp_path):
    stored = StoredExamples.of(Source(write_jsonl(tmp_path / "data.jsonl", pairs(20))))
    part = StoredExamples(stored.table, stored.places[5:15:2])
    assert part.lengths.tolist() == [[len(p["prompt"]), len(p["response"])] for p in pairs(20)[5:15:2]]
