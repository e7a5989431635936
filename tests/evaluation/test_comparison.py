"""Evaluations side by side: what each says of itself, what may be compared, and what may not."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.asking.answers import AnswerFile
from c2c_lightning.evaluation.report.comparison import compare_runs, load_evaluations
from c2c_lightning.evaluation.report.findings import findings
from c2c_lightning.evaluation.report.statistics import compare
from c2c_lightning.runs import RESULTS_FILE
from tests.evaluation.invented import Invented, results, right
from tests.evaluation.page import Page, pipe_tables

N = 200
FACTS = {"receiver": "Qwen3-0.6B", "gate": "kind learned"}


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
    """Writes an evaluation's folder as `test` does."""
    monkeypatch.chdir(tmp_path)

    def write(folder, c2c=180, wrong=24, seed=0, benchmark=None, answers=True, **facts):
        benchmark = benchmark or Invented(N)
        number = len(benchmark.items())
        scores = {"receiver": right(20, number), "c2c": right(c2c, number), "wrong_question": right(wrong, number)}
        of = results(scores, benchmark, seed)
        content = {"title": "t", "facts": FACTS | facts, "benchmarks": {benchmark.name: asdict(findings(of))}}
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / RESULTS_FILE).write_text(json.dumps(content))
        if answers:
            AnswerFile(tmp_path / folder, benchmark.name, "c2c").append(of.answers["c2c"])
        return content["benchmarks"][benchmark.name], scores["c2c"]

    return write


def page(folder="comparison") -> Page:
    return Page(Path(folder, "comparison.html").read_text())


def test_each_evaluation_is_a_row_with_its_gain(evaluation):
    found = {"a": evaluation("a")[0], "b": evaluation("b", c2c=30)[0]}
    compare_runs(["a", "b"], "out")
    gains, levels = page("out").tables[:2]
    for gain_row, level_row in zip(gains[1:], levels[1:]):
        cells, numbers = dict(zip(gains[0] + levels[0], gain_row + level_row)), found[gain_row[0]]
        gain = numbers["question_specific_gain"]
        values = [f"{100 * gain['difference'][key]:+.1f}".replace("-", "−") for key in ("value", "low", "high")]
        assert cells["question-specific gain"] == "{} [{}, {}]".format(*values)
        assert cells["verdict"] == ("C2C better" if gain["significant"] else "not significant")
        assert cells["C2C"] == f"{100 * numbers['methods']['c2c']['accuracy']['value']:.1f}%"
        assert cells["best control"] == "12.0% wrong_question"
        assert cells["text_to_text"] == "–"
    assert [row[3] for row in gains[1:]] == ["C2C better", "not significant"]
    assert pipe_tables(Path("out/comparison.md").read_text()) == page("out").tables


def test_c2c_of_the_same_questions_is_compared_question_by_question(evaluation):
    _, first = evaluation("a", c2c=100)
    _, second = evaluation("b", c2c=160)
    compare_runs(["a", "b"])
    expected = compare(second, first)
    row = dict(zip(*page().tables[2]))
    assert row["C2C of"] == "b"
    assert row["difference in points [95% interval]"].startswith(f"{100 * expected.difference.value:+.1f} [")
    assert (row["only the other better"], row["only the baseline better"], row["test"]) == (
        str(expected.only_c2c), str(expected.only_other), expected.test,
    )  # fmt: skip
    assert row["verdict"] == "b better"


@pytest.mark.parametrize(
    "other", [{"answers": False}, {"benchmark": Invented(N - 20)}, {"benchmark": Invented(N, choices=())}]
)
def test_c2c_of_other_questions_is_not(evaluation, other):
    evaluation("a", c2c=100)
    evaluation("b", **{"c2c": 160} | other)
    compare_runs(["a", "b"])
    assert "Not compared with it: b." in page().words
    assert not any(table[0][0] == "C2C of" for table in page().tables)


def test_what_makes_evaluations_incomparable_is_said(evaluation):
    evaluation("a")
    evaluation("b")
    compare_runs(["a", "b"])
    assert "Not comparable" not in page().words
    evaluation("c", benchmark=Invented(N, version=3), seed=5)
    evaluation("d", benchmark=Invented(N, choices=()))
    compare_runs(["a", "b", "c", "d"])
    words = page().words
    assert "Not comparable: the prompts differ. choices, version 2: a, b, d; choices, version 3: c." in words
    assert "Not comparable: the seeds differ. seed 0: a, b, d; seed 5: c." in words
    assert "Not comparable: the questions differ." in words
    assert "answer modes differ" not in words


def test_settings_are_shown_where_they_differ(evaluation):
    evaluation("a")
    evaluation("b", gate="kind open", layers="all")
    compare_runs(["a", "b"])
    table = page().tables[-2]
    assert table == [["setting", "a", "b"], ["gate", "kind learned", "kind open"], ["layers", "–", "all"]]
    assert "Qwen3-0.6B" in page().words


def test_training_runs_and_patterns_stand_for_their_evaluations(evaluation):
    for folder in ("runs/x/evaluation-1", "runs/y/evaluation-1", "runs/y/evaluation-2"):
        evaluation(folder)
    assert [each.label for each in load_evaluations(["runs/x", "runs/y"])] == [
        "x/evaluation-1", "y/evaluation-1", "y/evaluation-2",
    ]  # fmt: skip
    assert [each.label for each in load_evaluations(["runs/*", "runs/x/evaluation-1"])] == [
        "x/evaluation-1", "y/evaluation-1", "y/evaluation-2",
    ]  # fmt: skip
    assert [each.label for each in load_evaluations(["runs/y/evaluation-2", "runs/x"])] == ["y", "x"]


def test_benchmarks_that_only_some_asked_are_shown_for_those(evaluation):
    evaluation("a")
    evaluation("b", benchmark=Invented(N, name="other"))
    compare_runs("a,b")
    assert [row[0] for table in page().tables[:4] for row in table[1:]] == ["a", "a", "b", "b"]


def test_what_is_no_evaluation_is_named_with_the_remedy(evaluation, tmp_path):
    evaluation("a")
    (tmp_path / "unfinished" / "evaluation-1").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        compare_runs(["a", "nowhere", "unfinished", "no/*"])
    message = str(error.value)
    assert "nowhere (no folder), unfinished (no results.json" in message
    assert "no/* (no folder)" in message
    assert "python -m c2c_lightning test" in message
    assert not (tmp_path / "comparison").exists()
    with pytest.raises(UserError, match="empty list"):
        compare_runs([])


def test_a_damaged_file_of_results_is_one_message_that_says_where(evaluation, tmp_path):
    found, _ = evaluation("a")
    file = tmp_path / "a" / "results.json"
    whole = json.loads(file.read_text())
    spoilt = {
        "benchmarks.invented.methods: Input should be an object": {"methods": []},
        "benchmarks.invented.raw_gain: Input should be an object": {"raw_gain": "large"},
        "benchmarks.invented.prompt: Input should be an object": {"prompt": None},
        "benchmarks.invented.question_specific_gain.over: Field required": {
            "question_specific_gain": found["raw_gain"]
        },
    }
    texts = {m: json.dumps(whole | {"benchmarks": {"invented": found | c}}) for m, c in spoilt.items()} | {
        "Invalid JSON: recursion limit": "[" * 3000,
        "Invalid JSON": "{",
        "Input should be": "[]",
        "facts: Field required": '{"title": "t"}',
        "facts.gate: Input should be a valid string": json.dumps(whole | {"facts": {"gate": {"kind": "open"}}}),
        "should match pattern": json.dumps(whole | {"benchmarks": {"../x": found}}),
        "benchmarks.invented.benchmark": json.dumps(
            whole | {"benchmarks": {"invented": found | {"benchmark": "../x"}}}
        ),
    }
    for message, text in texts.items():
        file.write_text(text)
        with pytest.raises(UserError, match=r"a/results\.json is damaged: .*the answers are kept") as error:
            compare_runs(["a"])
        assert message in str(error.value)
    assert not (tmp_path / "comparison").exists()


def test_a_folder_may_have_brackets_and_commas_in_its_name(evaluation, tmp_path):
    evaluation("run[1],x/evaluation-[2]")
    compare_runs("run[1],x", "out[3]")
    assert (tmp_path / "out[3]" / "comparison.html").exists()
    assert [each.label for each in load_evaluations(["run[1],x"])] == ["run[1],x"]


def test_the_same_evaluations_give_the_same_bytes(evaluation, tmp_path):
    evaluation("a")
    evaluation("b", c2c=np.int64(150))
    pages = []
    for _ in range(2):
        compare_runs(["a", "b"])
        pages.append((tmp_path / "comparison" / "comparison.html").read_bytes())
    assert pages[0] == pages[1]
