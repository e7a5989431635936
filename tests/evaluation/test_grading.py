"""Every kind of answer is graded by what it means, not by how it is written."""

from __future__ import annotations

import itertools
import logging
import threading
from functools import cache

import pytest
from torchmetrics.functional.text import squad

from c2c_lightning.evaluation.benchmarks import Grade, grading


def test_a_letter_is_right_if_it_is_any_of_the_answers():
    assert grading.letter("The answer is C.", ("A", "C"), "ABCD") == Grade("C", 1.0)
    assert grading.letter("B", ("A", "C"), "ABCD") == Grade("B", 0.0)
    assert grading.letter("No idea.", ("A", "C"), "ABCD") == Grade(None, 0.0)


@pytest.mark.parametrize(
    ("response", "answer", "exact", "f1"),
    [
        (" Norway\n", "norway.", 1, 1),
        ("The Plum-Talk!", "plumtalk", 1, 1),
        ("<think>Oslo.</think>Norway", "Norway", 1, 1),
        ("red goat", "goat at sea", 0, 2 / 5),
        ("“Oslo”，", "Oslo", 1, 1),
        ("１２", "12", 1, 1),
        ("光荣和ω-force公司", "光荣和ω-force", 0, 4 / 5),
        ("北京。", "北京", 1, 1),
        ("南京", "北京", 0, 1 / 2),
        ("東京タワー", "東京", 0, 4 / 7),
        ("A", "the", 0, 0),  # SQuAD leaves nothing of either, and calls them the same
        ("%", "%", 1, 1),
        ("", "the", 0, 0),
    ],
)
def test_short_answers_are_compared_without_case_articles_and_punctuation(response, answer, exact, f1):
    assert grading.exact(response, ("none", answer)).score == exact
    assert grading.f1(response, ("none", answer)).score == pytest.approx(f1)


def test_exact_and_f1_are_squads():
    texts = ["The Cat sat, on a mat!", "cat sat on mat", "An $18.00 fee", "18.00", "mat on cat", "a dog", "Dog-house"]
    for said, answer in itertools.product(texts, texts):
        target = {"answers": {"answer_start": [0, 0], "text": [answer, "other dog"]}, "id": "0"}
        expected = squad({"prediction_text": said, "id": "0"}, target)
        graded = [100 * grade(said, (answer, "other dog")).score for grade in (grading.exact, grading.f1)]
        assert graded == pytest.approx([expected["exact_match"].item(), expected["f1"].item()], rel=1e-6)


def test_an_answer_may_stand_within_the_response():
    assert grading.contains("He lives in Oslo, Norway.", ("Rome", "Oslo norway")).score == 1
    assert grading.contains("It was 1950.", ("5",)).score == 0
    assert grading.contains("首都是北京。", ("北京",)).score == 1
    assert grading.contains("", ("北京",)) == Grade(None, 0.0)


def test_what_was_said_is_told_as_it_was_written():
    assert grading.exact(" Nor-way\n", ("Oslo",)) == Grade("Nor-way", 0.0)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("18", "18"),
        ("18.0", "18"),
        ("$18", "18"),
        ("$18.00", "18"),
        ("18 eggs", "18"),
        ("**18**", "18"),
        ("#### 18", "18"),
        ("2 + 16 = 18\n#### 18", "18"),
        ("3 of 33.333...%\n#### 33", "33"),
        ("\\boxed{18}", "18"),
        ("$\\boxed{18}$", "18"),
        ("\\boxed{\\$18}", "18"),
        ("\\boxed{18 \\text{ dollars}}", "18"),
        ("The answer is 18.", "18"),
        ("She has 3 and 15, so she has 18 in all.", "18"),
        ("<think>Perhaps 17.</think>18", "18"),
        ("1,234", "1234"),
        ("1234", "1,234"),
        ("It costs $1,234,567.", "1234567"),
        ("\\boxed{1,234}", "1234"),
        ("-7", "-7"),
        ("50%", "50%"),
        ("50\\%", "50"),
        ("1/2", "0.5"),
        ("\\frac{1}{2}", "0.5"),
        ("$\\frac{3}{4}$", "3/4"),
        ("x = 5", "5"),
        ("$x^2 + 2x$", "$2x + x^2$"),
    ],
)
def test_the_same_value_is_right_however_it_is_written(response, answer):
    assert grading.math(response, (answer,)).score == 1


@pytest.mark.parametrize("response", ["19", "180", "1.8", "-18", "18/2", "18 and then 20", "", "none", "<think>18"])
def test_another_value_is_wrong(response):
    assert grading.math(response, ("18",)).score == 0


def test_the_number_that_was_read_is_told():
    assert grading.math("So it is **1,234**.", ("18",)).extracted == "1234"
    assert grading.math("No idea.", ("18",)).extracted is None


def test_no_response_holds_grading_up(monkeypatch, caplog):
    monkeypatch.setattr(grading, "SECONDS", 0.3)
    monkeypatch.setattr(grading, "_worker", cache(lambda pid: grading.MathWorker()))
    for response in (r"$(1+x)^{1000000}$", r"$\binom{10^9}{5\cdot 10^8}$"):
        caplog.clear()
        assert grading.math(response, ("18",)) == Grade(None, 0.0)
        assert "could not be graded and counts as unread" in caplog.text
        assert grading.math(f"{len(response)}", (f"{len(response)}.0",)).score == 1  # by the next worker
    caplog.clear()
    for response in ("(" * 3000, "answer " + "of " * 3000, "1/" * 300 + "3", r"\frac{1}{" * 24 + "2" + "}" * 24):
        assert grading.math(response, ("18",)).score == 0
        assert grading.letter(response, ("A",), "ABCD").score == 0


def test_a_forked_process_and_one_that_was_interrupted_grade_by_workers_of_their_own(monkeypatch):
    workers = [grading._worker(pid) for pid in (1, 2)]
    assert workers[0] is not workers[1]
    worker = grading.MathWorker()
    assert worker.ask(["18", ["18"]]) == ["18", 1.0]
    first = worker.process

    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(first.stdout, "readline", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):
            worker.ask(["19", ["18"]])
    assert first.wait() < 0
    assert worker.ask(["18.0", ["18"]]) == ["18.0", 1.0]


def test_values_are_compared_in_threads_too_and_without_warnings(caplog):
    scores = []
    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=lambda: scores.append(grading.math("18.0", ("18",)).score))
        thread.start()
        thread.join()
    assert scores == [1.0]
    assert not caplog.messages
