"""Benchmarks read records as they are published, ask them in their prompt, and grade the right answer right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonargparse import ArgumentParser

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.benchmarks import (
    GSM8K,
    ARCChallenge,
    Benchmark,
    CEval,
    Item,
    MMLURedux,
    NanoWorld,
    OpenBookQA,
    OwnQuestions,
)

FILES = Path(__file__).parent / "benchmark_files"
PUBLISHED = Path(__file__).parents[3] / "shared" / "data"  # whole test sets, where a developer has them


def every_benchmark() -> list[Benchmark]:
    return [
        NanoWorld(),
        MMLURedux(str(FILES / "mmlu_redux")),
        ARCChallenge(str(FILES / "arc_challenge.jsonl")),
        OpenBookQA(str(FILES / "openbookqa.jsonl")),
        CEval(str(FILES / "ceval")),
        GSM8K(str(FILES / "gsm8k.jsonl")),
        GSM8K(str(FILES / "gsm8k.jsonl"), name="gsm8k_steps", prompt="worked_steps", max_new_tokens=512),
        OwnQuestions(str(FILES / "own.jsonl")),
        OwnQuestions(str(FILES / "own.jsonl"), name="own_f1", grading="f1"),
        OwnQuestions(str(FILES / "own.jsonl"), name="own_choices", prompt="choices"),
    ]


BENCHMARKS = {benchmark.name: benchmark for benchmark in every_benchmark()}


def write(path: Path, *records: object) -> str:
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_right_response_is_graded_right_and_the_message_asks_everything(name):
    benchmark = BENCHMARKS[name]
    items = benchmark.items()
    assert len({item.id for item in items}) == len(items) > 0
    for item in items:
        assert benchmark.grade(item, benchmark.response(item)).score == pytest.approx(1), item
        (message,) = benchmark.messages(item)
        assert message["role"] == "user"
        for text in (item.question, item.context, *item.choices):
            assert text in message["content"]
            assert text in benchmark.question_text(item)
        assert benchmark.max_new_tokens_of(item) >= 16
        assert "\n\n\n" not in message["content"].replace(item.context, "x").replace(item.question, "x")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_wrong_response_is_graded_wrong(name):
    benchmark = BENCHMARKS[name]
    for item in benchmark.items():
        wrong = next((letter for letter in item.letters if letter not in item.answers), "98765 zzz")
        assert benchmark.grade(item, wrong).score < 0.5
        assert benchmark.grade(item, "").score == 0


def test_nano_asks_the_questions_of_held_out_people():
    nano = BENCHMARKS["nano"]
    assert len(nano.items()) == 400
    assert {item.subject for item in nano.items()} == {"home town", "job", "pet", "favourite book"}
    item = nano.items()[0]
    assert nano.messages(item) == [{"role": "user", "content": item.question}]
    assert len(nano.exemplar_items()) == 1600
    assert not {item.question for item in nano.items()} & {item.question for item in nano.exemplar_items()}


MMLU_TABLE = """question;choices;answer;error_type;source;correct_answer;potential_reason
Six?;"['5', '6']";1;OK;;;
Seven?;"['7', ""8's""]";1;Wrong Groundtruth;;0;
Small?;"['ant', 'bee', 'cow']";0;multiple correct answers;;0 1;
Large?;"['ant', 'bee', 'cow']";0;Multiple correct answers;;depends on interpretation;
No one?;"['1', '2']";0;No Correct Answer;;;
"""


def test_mmlu_redux_is_read_from_the_tables_that_were_published(tmp_path):
    for name in ("mmlu_small_sums", "mmlu_large_sums"):
        (tmp_path / f"{name}.csv").write_text(MMLU_TABLE)
    benchmark = MMLURedux(str(tmp_path), subjects=["small_sums"])
    items = benchmark.items()
    assert [item.answers for item in items] == [("B",), ("A",), ("A", "B")]
    assert items[1].choices == ("7", "8's")
    assert {item.subject for item in items} == {"small_sums"}
    assert benchmark.dropped == {"correction cannot be read": 1, "no correct answer": 1}


QUESTIONS = {
    "mmlu_redux": 2976,
    "arc_challenge_train": 1119,
    "arc_challenge_test": 1172,
    "arc_easy_train": 2251,
    "openbookqa_train": 4957,
    "openbookqa_test": 500,
    "nq_oracle.jsonl": 2200,
    "xquad_en.jsonl": 900,
    "xquad.en.json": 632,
    "xquad.zh.json": 632,
    "qasc_facts.jsonl": 600,
    "countries.jsonl": 100,
    "tipsheets.jsonl": 300,
}


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the real text is not beside the checkout")
def test_all_questions_of_the_real_text_are_read(caplog):
    choices, passages = PUBLISHED / "choices", PUBLISHED / "passages"
    mmlu = MMLURedux(str(choices / "mmlu_redux"))
    benchmarks = {"mmlu_redux": mmlu}
    for file in choices.glob("*.jsonl"):
        benchmarks[file.stem] = (OpenBookQA if file.stem.startswith("openbookqa") else ARCChallenge)(str(file))
    benchmarks |= {file.name: OwnQuestions(str(file)) for file in passages.iterdir()}
    with caplog.at_level("INFO"):
        assert {name: len(benchmark.items()) for name, benchmark in benchmarks.items()} == QUESTIONS
    assert mmlu.dropped == {"no correct answer": 12, "correction cannot be read": 12}
    assert sum(message.startswith("mmlu_redux: left out /") for message in caplog.messages) == 24
    assert len({item.subject for item in mmlu.items()}) == 30
    assert any("I slapped my sister’s head" in item.question for item in mmlu.items())


def test_mmlu_redux_honours_the_corrections_of_the_hand_check():
    benchmark = BENCHMARKS["mmlu_redux"]
    answers = {item.question: item.answers for item in benchmark.items()}
    assert answers == {
        "How many loaves make a dozen and three?": ("D",),
        "What makes bread rise?": ("A", "B"),
        "What makes crusts {brown}?": ("A",),
        "Which river runs through Tavola?": ("C",),
        "Which river is longest?": ("C",),
        "Which rivers meet at Lom?": ("A", "C"),
        "Which river froze?": ("D",),
    }
    # "2" among 1, 2, 3 and 4 may be a place or a text.
    assert benchmark.dropped == {"correction cannot be read": 2, "no correct answer": 1}
    assert [item.id for item in benchmark.items()][:2] == ["baking/0", "baking/2"]
    assert {item.subject for item in benchmark.items()} == {"baking", "geography"}


@pytest.mark.parametrize(
    ("correction", "answers"),
    [
        ("2", "C"),
        ("C", "C"),
        ("c", "C"),
        ("(C)", "C"),
        ("C. Fulo", "C"),
        ("Option C", "C"),
        ("Fulo", "C"),
        (" fulo ", "C"),
        ("A and C", "AC"),
        ("A, C", "AC"),
        ("C,A", "AC"),
        ("A or C", "AC"),
        ("A/C", "AC"),
        ("0 and 2", "AC"),
        ("0, 1, 3", "ABD"),
        ("A, B, and C", "ABC"),
        ("Dora and Fulo", "AC"),
        ("Dora, or C", "AC"),
        ("A. Dora and C. Fulo", "AC"),
        ("The correct answer is C", "C"),
        ("A. Dora and another river", ""),
        ("C. Dora", ""),
        ("A, " * 40 + "x", ""),
        (2, "C"),
        ("", ""),
        (None, ""),
        ("4", ""),
        ("E", ""),
        ("none", ""),
        ("A and unknown", ""),
        ("A better question is needed", ""),
    ],
)
def test_corrections_are_read_however_they_were_written(correction, answers, tmp_path):
    record = json.loads((FILES / "mmlu_redux" / "geography.jsonl").read_text().splitlines()[2])
    kept = json.loads((FILES / "mmlu_redux" / "geography.jsonl").read_text().splitlines()[0])
    record["correct_answer"] = correction
    benchmark = MMLURedux(write(tmp_path / "rivers.jsonl", kept, record))
    assert [item.answers for item in benchmark.items()[1:]] == ([tuple(answers)] if answers else [])
    assert benchmark.dropped == ({} if answers else {"correction cannot be read": 1})


def test_arc_turns_numbers_into_letters():
    items = BENCHMARKS["arc_challenge"].items()
    assert [(item.letters, item.answers) for item in items] == [("ABCD", ("A",)), ("ABCDE", ("C",)), ("ABC", ("A",))]


def test_ceval_tells_the_same_number_of_two_subjects_apart():
    items = BENCHMARKS["ceval"].items()
    assert [item.id for item in items] == ["invented_history/0", "invented_history/1", "invented_law/0"]
    assert [item.answers for item in items] == [("B",), ("D",), ("A",)]
    assert BENCHMARKS["ceval"].grade(items[0], "答案是B").score == 1


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published test sets are not here")
def test_published_test_sets_are_read_and_graded():
    benchmark = GSM8K(str(PUBLISHED / "gsm8k_test.jsonl"))
    items = benchmark.items()
    assert len(items) == 1319
    marked = [json.loads(line)["answer"] for line in (PUBLISHED / "gsm8k_test.jsonl").read_text().splitlines()]
    for item, solution, other in zip(items, marked, items[1:] + items[:1]):
        assert benchmark.grade(item, solution).score == 1, item
        if other.answers != item.answers:
            assert benchmark.grade(item, f"{other.solution}\n#### {other.answers[0]}").score == 0, item
    assert len(ARCChallenge(str(PUBLISHED / "choices" / "arc_challenge_test.jsonl")).items()) == 1172
    assert len(OpenBookQA(str(PUBLISHED / "choices" / "openbookqa_test.jsonl")).items()) == 500


def test_worked_solutions_of_gsm8k_are_graded_with_their_calculator_marks():
    benchmark = BENCHMARKS["gsm8k"]
    records = [json.loads(line) for line in (FILES / "gsm8k.jsonl").read_text().splitlines()]
    assert all(benchmark.grade(item, record["answer"]).score == 1 for item, record in zip(benchmark.items(), records))


def test_worked_steps_show_the_way_and_the_box():
    benchmark = BENCHMARKS["gsm8k_steps"]
    response = benchmark.response(benchmark.items()[0])
    assert response == "She stacks 6*200=1200 plums.\n1200-3=1197 are left.\n\n\\boxed{1,197}"


def test_numbers_are_taken_as_the_text_that_they_are_written_as(tmp_path):
    records = [
        {"question": "2 + 2?", "choices": [3, 4.5, 4], "answer": 4},
        {"question": "2 + 2?", "choices": [3, 4, 5], "answer": "B"},
        {"question": "2 + 2?", "choices": [0, 1, 4], "answer": 0, "id": 7, "subject": 1},
        {"question": "2 + 2?", "reference": 4},
        {"question": "2 + 2?", "reference": [4, "four", 4.0]},
    ]
    items = OwnQuestions(write(tmp_path / "own.jsonl", *records)).items()
    assert [item.answers for item in items] == [("C",), ("B",), ("A",), ("4",), ("4", "four", "4.0")]
    assert (items[0].choices, items[2].id, items[2].subject) == (("3", "4.5", "4"), "7", "1")


def test_several_references_in_a_cell_are_as_many(tmp_path):
    cells = """question,reference\n2 + 2?,"[""4"", ""four""]"\n2 + 2?,['4' 'four']\nInterval?,"[1, 2]"\n"""
    (tmp_path / "own.csv").write_text(cells)
    answers = [item.answers for item in OwnQuestions(str(tmp_path / "own.csv")).items()]
    assert answers == [("4", "four"), ("4", "four"), ("[1, 2]",)]


def test_an_answer_in_a_cell_that_may_be_a_place_or_a_text_is_refused(tmp_path):
    def answers(answer: str, choices: str = "[1, 2, 3, 4]") -> list[tuple[str, ...]]:
        (tmp_path / "own.csv").write_text(f'question,choices,answer\nWhich?,"{choices}",{answer}\n')
        return [item.answers for item in OwnQuestions(str(tmp_path / "own.csv")).items()]

    assert [answers(answer) for answer in ("0", "4", "B")] == [[("A",)], [("D",)], [("B",)]]
    for choices in ("[1, 2, 3, 4]", "['1', '2', '3', '4']"):
        with pytest.raises(UserError, match=r"own\.csv:2: answer '2' may mean B or C; give its letter"):
            answers("2", choices)


def test_questions_without_an_answer_are_left_out_and_counted(tmp_path):
    unanswered = {"question": "Before six?", "id": "b", "is_impossible": True, "answers": []}
    questions = [{"question": "After six?", "id": "a", "answers": [{"text": "seven"}]}, unanswered]
    article = {"paragraphs": [{"context": "Six comes before seven.", "qas": questions}]}
    benchmark = OwnQuestions(write(tmp_path / "squad.json", {"data": [article]}))
    assert [item.id for item in benchmark.items()] == ["a"]
    assert benchmark.dropped == {"no answer": 1}
    with pytest.raises(UserError, match=r"has no questions \(1 left out: no answer\)"):
        OwnQuestions(write(tmp_path / "none.jsonl", unanswered | {"answers": {"text": []}})).items()


def test_there_may_be_as_many_choices_as_letters(tmp_path):
    record = {"question": "Which?", "choices": [f"no. {i}" for i in range(26)], "answer": "Z"}
    benchmark = OwnQuestions(write(tmp_path / "own.jsonl", record, record | {"answer": "no. 24"}))
    items = benchmark.items()
    assert [item.answers for item in items] == [("Z",), ("Y",)]
    assert benchmark.grade(items[0], "The answer is **Z**.").score == 1
    assert benchmark.grade(items[0], "The answer is **K**.").extracted == "K"


def test_own_questions_take_letters_places_and_texts():
    items = BENCHMARKS["own"].items()
    assert [item.answers for item in items] == [("A",), ("B",), ("A",), ("B",), ("Ida", "Ida Lark"), ("1.25",)]
    assert [item.id for item in items] == ["boats-1", "boats/1", "own/2", "own/3", "own/4", "own/5"]
    content = BENCHMARKS["own"].messages(items[0])[0]["content"]
    assert content.startswith("A gig is {long} and narrow.\n\nWhat is a gig?\n\nA. a boat\nB. a goat\nC. a coat\n\n")
    assert "(A, B, C)" in content
    assert BENCHMARKS["own"].messages(items[4])[0]["content"] == "Who rowed?\n\nReply with nothing but the answer."
    assert OwnQuestions(str(FILES / "own.jsonl"), grading="math").grade(items[5], "5/4").score == 1
    assert BENCHMARKS["own_f1"].grade(items[4], "Ida Mark").score == pytest.approx(2 / 3)


@pytest.mark.parametrize("store", ["parquet", "folder of parquet", "saved splits"])
def test_records_are_the_same_from_every_store(store, tmp_path):
    records = [json.loads(line) for line in (FILES / "arc_challenge.jsonl").read_text().splitlines()]
    if store == "saved splits":
        table = datasets.Dataset.from_list(records)
        datasets.DatasetDict({"train": table.select([0]), "test": table}).save_to_disk(tmp_path / "arc")
    else:
        (tmp_path / "arc").mkdir()
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "arc" / "test.parquet")
    path = tmp_path / "arc" / "test.parquet" if store == "parquet" else tmp_path / "arc"
    assert ARCChallenge(str(path)).items() == BENCHMARKS["arc_challenge"].items()


def test_own_questions_come_from_parquet_with_empty_columns(tmp_path):
    records = [json.loads(line) for line in (FILES / "own.jsonl").read_text().splitlines()]
    for record in records:  # a Parquet column is of one type
        if isinstance(record.get("reference"), str):
            record["reference"] = [record["reference"]]
        if "answer" in record:
            record["answer"] = str(record["answer"])
    columns = {column: [record.get(column) for record in records] for record in records for column in record}
    pq.write_table(pa.table(columns), tmp_path / "own.parquet")
    stored = OwnQuestions(str(tmp_path / "own.parquet"))
    assert [item.answers for item in stored.items()] == [item.answers for item in BENCHMARKS["own"].items()]


def test_limit_takes_the_first_of_the_whole():
    for limit in (1, 4):
        benchmark = MMLURedux(str(FILES / "mmlu_redux"), limit=limit)
        assert benchmark.items() == BENCHMARKS["mmlu_redux"].items()[:limit]


def test_subjects_are_chosen_by_name():
    benchmark = MMLURedux(str(FILES / "mmlu_redux"), subjects=["baking"])
    assert {item.subject for item in benchmark.items()} == {"baking"}
    with pytest.raises(UserError, match=r"mmlu_redux.subjects has 'bakin', .*\. Did you mean baking\?"):
        MMLURedux(str(FILES / "mmlu_redux"), subjects=["bakin"]).items()


def test_exemplars_come_from_another_file_or_split(tmp_path):
    path = str(FILES / "openbookqa.jsonl")
    assert OpenBookQA(path).exemplar_items() == []
    other = write(tmp_path / "train.jsonl", *(FILES / "openbookqa.jsonl").read_text().replace("9-", "8-").splitlines())
    assert [item.id for item in OpenBookQA(path, exemplars=other).exemplar_items()] == ["8-1", "8-2"]
    table = datasets.Dataset.from_list([json.loads(line) for line in Path(other).read_text().splitlines()])
    datasets.DatasetDict({"train": table.select([1]), "test": table.select([0])}).save_to_disk(tmp_path / "saved")
    saved = OpenBookQA(str(tmp_path / "saved"), exemplars=str(tmp_path / "saved"))
    assert [item.id for item in saved.items() + saved.exemplar_items()] == ["8-1", "8-2"]
    with pytest.raises(UserError, match=r"openbookqa.exemplars: .*openbookqa.jsonl holds the questions too"):
        OpenBookQA(path, exemplars=[other, path]).exemplar_items()


def test_what_exemplars_leave_out_is_not_counted_with_the_questions(tmp_path):
    lines = (FILES / "mmlu_redux" / "geography.jsonl").read_text().splitlines()
    benchmark = MMLURedux(write(tmp_path / "a.jsonl", lines[0]), exemplars=write(tmp_path / "b.jsonl", *lines))
    assert len(benchmark.items()) == 1
    assert len(benchmark.exemplar_items()) == 4
    assert benchmark.dropped == {}


ARC = {"id": "x", "question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
MMLU = {"question": "Why?", "choices": ["a", "b"], "answer": 0, "error_type": "ok", "correct_answer": None}
OWN = {"question": "Why?", "choices": ["to", "fro"], "answer": "A"}


@pytest.mark.parametrize(
    ("cls", "change", "message"),
    [
        (ARCChallenge, {"answerKey": ...}, " is damaged: answerKey: Field required"),
        (ARCChallenge, {"answerKey": "C"}, ": answerKey 'C' is not among the choices ['A', 'B']; give one"),
        (ARCChallenge, {"question": " "}, ": the question is empty; write one"),
        (ARCChallenge, {"question": 5}, " is damaged: question: Input should be a valid string, not 5. Correct it, or"),
        (ARCChallenge, {"choices": {"text": ["a"], "label": ["A"]}}, ": it has 1 choices; give from 2 to 26"),
        (ARCChallenge, {"choices": {"text": ["a"], "label": ["A", "B"]}}, ": 1 choices have the labels ['A', 'B']"),
        (ARCChallenge, {"choices": ["a", "b"]}, " is damaged: choices: Input should be a dictionary"),
        (MMLURedux, {"answer": 2}, ": answer 2 is not among the 2 choices; give one from 0"),
        (MMLURedux, {"answer": "A"}, ": answer 'A' is not among the 2 choices"),
        (MMLURedux, {"error_type": "odd"}, ": error_type 'odd' is none of ok, no_correct_answer"),
        (MMLURedux, {"error_type": ...}, " is damaged: error_type: Field required"),
        (MMLURedux, {"choices": "a b"}, " is damaged: choices: Input should be a valid list, not 'a b'"),
        (MMLURedux, {"choices": list("abc") * 10}, ": it has 30 choices; give from 2 to 26"),
        (OwnQuestions, {"choices": list("abc") * 10, "answer": "b"}, ": it has 30 choices; give from 2 to 26"),
        (OwnQuestions, {"choices": [1, 2, 3], "answer": 2}, ": answer 2 may mean B or C; give its letter"),
        (
            OwnQuestions,
            {"choices": [True, False]},
            ": choices is damaged: 0: Input should be a valid string, not True",
        ),
        (OwnQuestions, {"context": "\ud800"}, ": it holds half a surrogate pair"),
        (
            OwnQuestions,
            {"choices": ..., "reference": [1, [2]]},
            " is damaged: reference.1: Input should be a valid str",
        ),
        (OwnQuestions, {"question": {"a": "b"}}, " is damaged: question: Input should be a valid string"),
        (GSM8K, {"answer": "5"}, ": answer has no final number; write it after '####'"),
        (GSM8K, {"answer": "####"}, ": it has no answer; give one"),
        (OwnQuestions, {"answer": "C"}, ": answer 'C' is not among the choices ['to', 'fro']; give a letter"),
        (OwnQuestions, {"answer": 2}, ": answer 2 is not among the choices"),
        (OwnQuestions, {"choices": ["B", "A"]}, ": answer 'A' may mean A or B; give its place as a number"),
        (OwnQuestions, {"choices": ...}, ": it has neither choices nor a reference; give"),
        (OwnQuestions, {"choices": ..., "reference": [" "]}, ": it has no answer"),
    ],
)
def test_a_wrong_record_is_one_error_with_its_file_row_and_remedy(cls, change, message, tmp_path):
    record = {ARCChallenge: ARC, MMLURedux: MMLU, OwnQuestions: OWN}.get(cls, {"question": "Why?"})
    record = {key: value for key, value in {**record, **change}.items() if value is not ...}
    file = write(tmp_path / "wrong.jsonl", record)
    with pytest.raises(UserError, match=re.escape(f"{file}:1{message}")) as error:
        cls(file).items()
    assert str(error.value).startswith(f"{cls(file).name}: ")


def test_lines_that_are_no_records_are_one_error_too(tmp_path):
    for line, message in (("{", "not JSON"), ("[1]", "it is a list; make it an object")):
        with pytest.raises(UserError, match=f"own: .*wrong.jsonl:1: {message}"):
            OwnQuestions(write(tmp_path / "wrong.jsonl", line)).items()


def test_duplicate_ids_are_refused_with_both_places(tmp_path):
    file = write(tmp_path / "twice.jsonl", ARC, ARC)
    with pytest.raises(UserError, match=r"twice.jsonl:2: id 'x' is also that of .*twice.jsonl:1; make ids unique"):
        ARCChallenge(file).items()


def test_no_questions_are_refused_with_what_was_left_out(tmp_path):
    with pytest.raises(UserError, match=r"mmlu_redux.path .* has no questions \(1 left out: no correct answer\)"):
        MMLURedux(write(tmp_path / "a.jsonl", {**MMLU, "error_type": "no_correct_answer"})).items()
    with pytest.raises(UserError, match=r"own.path .* has no questions \(no records\)"):
        OwnQuestions(write(tmp_path / "b.jsonl")).items()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ARCChallenge("missing/file.jsonl").items(), "arc_challenge.path 'missing/file.jsonl': no such file"),
        (lambda: ARCChallenge("nobody/no-data").items(), "arc_challenge.path 'nobody/no-data' .* as a hub id: "),
        (lambda: MMLURedux("nobody/no-data").items(), "mmlu_redux.path 'nobody/no-data' .* as a hub id: "),
        (lambda: GSM8K("x", name="a/b"), "name 'a/b' becomes part of file names"),
        (lambda: GSM8K("x", limit=0), "gsm8k.limit is 0: it must be at least 1"),
        (
            lambda: GSM8K("x", answer_mode="letters"),
            "gsm8k.answer_mode is 'letters': give one of generate, logits, likelihood, likelihood_per_character",
        ),
        (lambda: NanoWorld(answer_mode="logits").items(), "nano.answer_mode is 'logits', .* open questions"),
        (lambda: OwnQuestions("x", grading="maths"), "own.grading is 'maths': give one of exact, contains, f1, math"),
    ],
)
def test_what_cannot_be_is_refused_by_key_and_value(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("cls", [ARCChallenge, CEval, GSM8K, MMLURedux, NanoWorld, OpenBookQA])
def test_every_benchmark_is_made_from_a_configuration_alone(cls):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--benchmark", type=Benchmark)
    path = f"{cls.__module__.rpartition('.')[0]}.{cls.__name__}"
    config = {"class_path": path, "init_args": {"limit": 3, "answer_mode": "generate", "name": "mine"}}
    benchmark = parser.instantiate_classes(parser.parse_object({"benchmark": config})).benchmark
    assert (type(benchmark), benchmark.limit, benchmark.name) == (cls, 3, "mine")


def test_a_benchmark_has_choices_if_every_question_has(tmp_path):
    assert BENCHMARKS["arc_challenge"].has_choices
    assert not BENCHMARKS["gsm8k"].has_choices
    mixed = OwnQuestions(str(FILES / "own.jsonl"), answer_mode="logits")
    assert not mixed.has_choices
    for _ in range(2):
        with pytest.raises(UserError, match=r"own.answer_mode is 'logits', .* open questions: use 'generate'"):
            mixed.items()
    closed = OwnQuestions(write(tmp_path / "own.jsonl", OWN), answer_mode="logits")
    assert closed.has_choices
    assert len(closed.items()) == 1


def test_a_users_own_benchmark_is_one_small_class(tmp_path):
    class Riddles(Benchmark):
        def to_item(self, record, source):
            return Item("", record["riddle"], (record["solution"],))

    riddles = Riddles(write(tmp_path / "r.jsonl", {"riddle": "Wet?", "solution": "rain"}), prompt="plain")
    (item,) = riddles.items()
    assert (riddles.name, item.id) == ("riddles", "r/0")
    assert riddles.grade(item, "rain").score == 1
