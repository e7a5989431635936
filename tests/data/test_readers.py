"""Files are read as people have them: JSON in every layout, tables of every separator and encoding, nested questions."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from some_data import SHARED

from c2c_lightning.data.records import MalformedRecord, unwritten
from c2c_lightning.data.source import Source
from c2c_lightning.errors import UserError

RECORDS = [{"question": "Six?", "answer": "6"}, {"question": "Größe, “in cm”\n(rund)?", "answer": "7; or 8"}]


def rows(path: Path, split: str = "train") -> list[object]:
    source = Source(str(path), split)
    source.check()
    return [record for _, record in source.rows()]


def table(separator: str, records: list[dict[str, str]] = RECORDS) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


LIST, LINES = json.dumps(RECORDS), "\n".join(map(json.dumps, RECORDS))
LAYOUTS = {
    "a list": LIST,
    "an indented list": json.dumps(RECORDS, indent=2),
    "a list of a record a line": "[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n",
    "lines": LINES,
    "blank lines": "\n\n" + LINES.replace("\n", "\n\n") + "\n",
    "an object around a list": json.dumps({"version": "1.1", "data": RECORDS}),
    "an indented object around a list": json.dumps({"version": "1.1", "data": RECORDS}, indent=4),
    "lines in an object around a list": '{"data": [\n' + ",\n".join(map(json.dumps, RECORDS)) + "\n]}",
    "indented objects": "\n".join(json.dumps(record, indent=2) for record in RECORDS),
    "lines that end with commas": ",\n".join(map(json.dumps, RECORDS)) + ",\n",
    "indented objects with commas between": ",\n".join(json.dumps(record, indent=2) for record in RECORDS),
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSONL"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_is_read_in_every_layout_and_behind_every_byte_order_mark(layout, suffix, tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file = tmp_path / f"data{suffix}"
        file.write_text(LAYOUTS[layout], encoding=encoding)
        assert rows(file) == RECORDS


def test_one_indented_object_is_one_record(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(RECORDS[0], indent=2))
    assert rows(tmp_path / "data.json") == RECORDS[:1]


CHATS = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}"}] for i in range(3)]
SHAREGPT = [[{"from": "human", "value": "Six?"}, {"from": "gpt", "value": "6"}]]


@pytest.mark.parametrize("chats", [CHATS, CHATS[:1], SHAREGPT], ids=["several", "one", "ShareGPT"])
@pytest.mark.parametrize("layout", ["lines", "a list", "an object around a list"])
def test_lists_of_turns_are_chats(chats, layout, tmp_path):
    texts = {
        "lines": "\n".join(map(json.dumps, chats)),
        "a list": json.dumps(chats, indent=2),
        "an object around a list": json.dumps({"data": chats}),
    }
    (tmp_path / "data.jsonl").write_text(texts[layout])
    assert rows(tmp_path / "data.jsonl") == [{"messages": chat} for chat in chats]


def test_a_line_that_is_a_list_is_no_list_of_records(tmp_path):
    (tmp_path / "data.jsonl").write_text("[1, 2]\n" + LINES)
    assert rows(tmp_path / "data.jsonl") == [[1, 2], *RECORDS]


def test_a_first_line_that_is_not_json_leaves_the_others_readable(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"question": "cut o\n' + LINES)
    (place, first), *others = Source(str(tmp_path / "data.jsonl")).rows()
    assert place.endswith("data.jsonl:1")
    assert isinstance(first, MalformedRecord)
    assert [record for _, record in others] == RECORDS


def test_an_indented_object_that_is_cut_off_is_named_and_those_before_it_are_read(tmp_path):
    (tmp_path / "data.json").write_text(LAYOUTS["indented objects"][:-3])
    first, cut = rows(tmp_path / "data.json")
    assert first == RECORDS[0]
    assert str(cut).startswith("not JSON: ")


def test_a_list_of_one_record_in_its_own_line_is_one_record(tmp_path):
    (tmp_path / "data.json").write_text('{"data": [\n' + json.dumps(RECORDS[0]) + "\n]}")
    assert rows(tmp_path / "data.json") == RECORDS[:1]


def test_objects_behind_one_that_is_no_json_are_read(tmp_path):
    objects = [json.dumps(record, indent=2) for record in RECORDS]
    (tmp_path / "data.json").write_text("\n".join([objects[0], objects[0].replace("}", ""), *objects]))
    first, broken, *others = rows(tmp_path / "data.json")
    assert str(broken).startswith("not JSON: ")
    assert [first, *others] == [RECORDS[0], *RECORDS]


ACCENTED = [
    {"question": "What is the café’s “special” worth; déjà vu?", "answer": "5 €, or naïve"},
    {"question": "Wie heißt Frau Müllers Straße in Köln?", "answer": "Größe"},
    {"question": "Où est la bibliothèque d’été?", "answer": "À côté"},
]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "mac_roman"])
def test_tables_are_read_with_any_separator_and_encoding(separator, encoding, tmp_path, caplog):
    file = tmp_path / ("data.tsv" if separator == "\t" else "data.csv")
    file.write_bytes(table(separator, ACCENTED).encode(encoding))
    assert rows(file) == ACCENTED
    guessed = [f"{file} is not UTF-8: it is read as {encoding}"] if not encoding.startswith("utf") else []
    assert caplog.messages == guessed


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_line_that_tells_excel_the_separator_is_no_row(encoding, separator, tmp_path):
    file = tmp_path / "data.csv"
    file.write_bytes(f"sep={separator}\r\n{table(separator, ACCENTED)}bad\r\n".encode(encoding))
    source = Source(str(file))
    *read, (place, bad) = source.rows()
    assert [record for _, record in read] == ACCENTED
    assert isinstance(bad, MalformedRecord)
    assert place == f"{file}:6"


def test_a_cell_may_have_lines_and_a_row_is_named_by_its_first(tmp_path):
    (tmp_path / "data.csv").write_bytes(table(",", [RECORDS[1], RECORDS[0]]).encode())
    read = list(Source(str(tmp_path / "data.csv")).rows())
    assert [record for _, record in read] == [RECORDS[1], RECORDS[0]]
    assert [place.rpartition(":")[2] for place, _ in read] == ["2", "4"]


@pytest.mark.parametrize("encoding", ["gb18030", "big5"])
def test_a_chinese_table_is_read_in_its_old_encodings(encoding, tmp_path):
    records = [{"question": "中國的首都是哪個城市？", "answer": "北京"}] * 3
    (tmp_path / "data.csv").write_bytes(table(",", records).encode(encoding))
    assert rows(tmp_path / "data.csv") == records


def test_rows_that_are_not_as_their_table_are_named_and_the_others_are_read(tmp_path):
    good = [f"Größe {i}?,{i}" for i in range(5)]
    bad = ["alone", "one,too,many", '"half" quoted,1', "caf\udce9?,no"]
    text = "\n".join(["question,answer", *good, *bad, "empty,", '"open,1'])
    (tmp_path / "data.csv").write_bytes(text.encode(errors="surrogateescape"))
    read = rows(tmp_path / "data.csv")
    assert [row["question"] for row in read[:5]] == [f"Größe {i}?" for i in range(5)]
    few, many, quoted, latin, empty, unended = map(str, read[5:])
    assert "too few cells" in few
    assert "too many cells" in many
    assert "not CSV: ',' expected" in quoted
    assert "not UTF-8" in latin
    assert empty == "{'question': 'empty', 'answer': None}"
    assert "not CSV: unexpected end" in unended


def test_an_open_quote_that_takes_many_rows_with_it_is_refused(tmp_path):
    text = table(",", [{"question": f"{i}?", "answer": str(i)} for i in range(300)])
    (tmp_path / "data.csv").write_text(text.replace("\n12?", '\n"12?').replace("\n13?", '\n"13"?'), newline="")
    read = list(Source(str(tmp_path / "data.csv")).rows())
    broken = [(place.rpartition(":")[2], record) for place, record in read if isinstance(record, MalformedRecord)]
    assert len(read) == 299
    assert [place for place, _ in broken] == ["14"]
    assert str(broken[0][1]).endswith("in a row that ends in line 15")
    (tmp_path / "data.csv").write_text(text.replace("\n12?", '\n"12?').replace("\n213?", '\n"213"?'), newline="")
    with pytest.raises(UserError, match=r"cannot be read: the row of line 14 has an open quote, and ends in line 215"):
        rows(tmp_path / "data.csv")


def test_a_table_with_two_columns_of_a_name_is_refused(tmp_path):
    (tmp_path / "data.csv").write_text("question,answer,,answer,\nSix?,6,,7,\n")
    with pytest.raises(UserError, match=r"data\.csv cannot be read: its columns \['answer'\] are there twice"):
        rows(tmp_path / "data.csv")


def test_compressed_files_are_read_as_they_would_be_without(tmp_path):
    for name, data in {
        "a.csv.gz": gzip.compress(table(";").encode()),
        "b.json.bz2": bz2.compress(LIST.encode()),
        "c.jsonl.gz": gzip.compress(codecs.BOM_UTF8 + LINES.encode()),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert rows(tmp_path / name) == RECORDS


ARTICLE = {
    "title": "Numbers",
    "paragraphs": [
        {
            "context": "Six comes before seven.",
            "qas": [
                {"id": "a", "question": "After six?", "answers": [{"text": "seven", "answer_start": 16}] * 2},
                {"id": "b", "question": "Before six?", "answers": []},
                {"id": "c", "question": "Before six?"},
            ],
        }
    ],
}


@pytest.mark.parametrize("text", [json.dumps({"version": "1.1", "data": [ARTICLE] * 2}), json.dumps(ARTICLE)])
def test_the_articles_of_squad_become_questions(text, tmp_path):
    (tmp_path / "data.json").write_text(text)
    read = rows(tmp_path / "data.json")
    assert [(r["id"], r["context"], r["question"], r["reference"]) for r in read[:3]] == [
        ("a", "Six comes before seven.", "After six?", ["seven"]),
        ("b", "Six comes before seven.", "Before six?", []),
        ("c", "Six comes before seven.", "Before six?", []),
    ]


def test_an_article_without_questions_is_named(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps({"data": [ARTICLE, {"paragraphs": [{"context": "No more."}]}]}))
    assert "an article that is not as SQuAD has them: KeyError('qas')" in str(rows(tmp_path / "data.json")[-1])


def test_the_questions_of_ai2_get_the_columns_of_the_hub(tmp_path):
    choices = [{"label": "A", "text": "5"}, {"label": "B", "text": "6"}]
    record = {"id": "1", "question": {"stem": "Six?", "choices": choices}, "answerKey": "B"}
    (tmp_path / "data.jsonl").write_text(json.dumps(record))
    hub = {"id": "1", "question": "Six?", "choices": {"text": ["5", "6"], "label": ["A", "B"]}, "answerKey": "B"}
    assert rows(tmp_path / "data.jsonl") == [hub]


@pytest.mark.parametrize(
    "answers", [{"text": "seven"}, {"text": ["seven"]}, "{'text': array(['seven'], dtype=object)}"]
)
def test_an_answer_may_be_one_text_where_squad_has_a_list_or_stand_in_a_cell(answers, tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"question": "After six?", "answers": answers}))
    assert [row["reference"] for row in rows(tmp_path / "data.jsonl")] == [["seven"]]


def test_files_that_name_no_split_beside_those_that_do_are_left_out_with_a_warning(tmp_path, caplog):
    for name in ("train.csv", "more.csv"):
        (tmp_path / name).write_text(table(","), newline="")
    assert rows(tmp_path) == RECORDS
    assert caplog.messages == [f"{tmp_path}: 1 files have no split in their names and are left out: more.csv"]


def test_hidden_files_and_those_about_the_data_are_left_alone_in_a_folder(tmp_path):
    for name in ("train.csv", "validation.csv", ".git/train.csv", "__MACOSX/._train.csv", ".train.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(table(","), newline="")
    for name in ("dataset_info.json", "dataset_infos.json", "README.md", "LICENSE", ".gitattributes", "config.json"):
        (tmp_path / name).write_text("{}")
    assert rows(tmp_path) == RECORDS
    assert rows(tmp_path, "train+validation") == RECORDS * 2


def test_a_folder_of_other_files_is_refused_with_what_would_be_read(tmp_path):
    (tmp_path / "notes.txt").write_text("Six is 6.")
    with pytest.raises(UserError, match=r"has none of \.jsonl, \.ndjson, \.json, \.csv, \.tsv, \.parquet\."):
        rows(tmp_path)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("['one', \"it's\"]", ["one", "it's"]),
        ('["one", null]', ["one", None]),
        ('{"a": 1}', {"a": 1}),
        ("['one' \"it's\"\n 'two three']", ["one", "it's", "two three"]),
        ("[np.str_('one'), np.str_(\"it's\")]", ["one", "it's"]),
        (
            "{'text': array(['one', \"array([2]) [it's]\"],\n      dtype=object), 'at': array([1, 2], dtype=int32)}",
            {"text": ["one", "array([2]) [it's]"], "at": [1, 2]},
        ),
        ("['np.str_(\"one\")']", ['np.str_("one")']),
        ("[not a list", "[not a list"),
        ("Six", "Six"),
        (["one"], ["one"]),
    ],
)
def test_lists_in_cells_are_read_as_json_or_as_python_and_numpy_print_them(cell, value):
    assert unwritten(cell) == value


COUNTS = {
    "gsm8k_train.jsonl": 7473,
    "gsm8k_test.jsonl": 1319,
    "passages/nq_oracle.jsonl": 2200,
    "passages/xquad_en.jsonl": 900,
    "passages/xquad.en.json": 632,
    "passages/xquad.zh.json": 632,
    "passages/qasc_facts.jsonl": 600,
    "passages/countries.jsonl": 100,
    "passages/tipsheets.jsonl": 300,
    "choices/arc_challenge_train.jsonl": 1119,
    "choices/arc_challenge_test.jsonl": 1172,
    "choices/arc_easy_train.jsonl": 2251,
    "choices/openbookqa_train.jsonl": 4957,
    "choices/openbookqa_test.jsonl": 500,
    "choices/mmlu_redux": 3000,
    "chats/glaive_toolcall_en_demo.json": 300,
    "chats/reason_tool_use_demo_50.jsonl": 50,
    "chats/kto_en_demo.json": 300,
    "chats/alpaca_en_demo.json": 999,
    "chats/alpaca_zh_demo.json": 1000,
    "chats/dummy_conversation.json": 500,
}


@pytest.mark.skipif(not SHARED.exists(), reason="the real text is not beside the checkout")
def test_every_record_of_the_real_text_is_read():
    counts = {}
    for name in COUNTS:
        read = rows(SHARED / name)
        assert all(isinstance(record, dict) for record in read)
        counts[name] = len(read)
    assert counts == COUNTS
    with (SHARED / "passages/xquad.en.json").open() as file:
        articles = json.load(file)["data"]
    assert sum(len(p["qas"]) for article in articles for p in article["paragraphs"]) == COUNTS["passages/xquad.en.json"]
