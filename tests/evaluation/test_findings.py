"""Numbers of a report against the statistics they name, and the words that are made of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from c2c_lightning.evaluation.findings import findings
from c2c_lightning.evaluation.reading_guide import reading_guide
from c2c_lightning.evaluation.statistics import accuracy, compare, question_specific_gain
from c2c_lightning.evaluation.wording import sections
from tests.evaluation.invented import BYTES_PER_TOKEN, MESSAGE_TOKENS, Invented, results, right

N = 400
CLEAR = {"receiver": 40, "sharer": 10, "text_to_text": 200, "c2c": 380, "wrong_question": 44, "zero_update": 40}


def clear(**others: int) -> dict[str, np.ndarray]:
    """Scores of an evaluation in which C2C is far above everything, but for `others`."""
    return {name: right(number, N) for name, number in (CLEAR | others).items()}


def said(scores, tmp_path, benchmark=None) -> tuple[dict, str]:
    """The findings, and everything that is said about them, without line breaks."""
    found = findings(results(scores, benchmark))
    parts = sections(found, tmp_path)
    words = [f"{part.title} {part.text} {' '.join(t.to_string() for t in part.tables.values())}" for part in parts]
    return found, " ".join(" ".join(words).replace("\u00a0", " ").split())


def test_every_number_is_the_statistic_it_is_named_after():
    scores = clear()
    found = findings(results(scores, seed=3))
    assert json.loads(json.dumps(found)) == found
    for name in scores:
        expected = accuracy(scores[name])
        assert found["methods"][name]["accuracy"] == {
            "value": expected.value, "low": expected.low, "high": expected.high,
        }  # fmt: skip
        if name != "c2c":
            comparison, expected = found["comparisons"][name], compare(scores["c2c"], scores[name], seed=3)
            assert comparison["difference"]["low"] == expected.difference.low
            assert (comparison["p"], comparison["test"]) == (expected.p, expected.test)
            assert (comparison["only_c2c"], comparison["only_other"]) == (expected.only_first, expected.only_second)
    controls = {name: scores[name] for name in ("wrong_question", "zero_update", "receiver")}
    gain, expected = found["question_specific_gain"], question_specific_gain(scores["c2c"], controls, seed=3)
    assert (gain["over"], gain["p"], gain["significant"]) == (expected.over, expected.p, True)
    assert gain["difference"]["value"] == expected.comparison.difference.value == pytest.approx((380 - 44) / N)
    assert found["raw_gain"] == found["comparisons"]["receiver"]


def test_findings_say_what_was_asked_and_what_it_cost():
    found = findings(results(clear(), Invented(N, version=7), seed=3))
    assert found["prompt"] == {"name": "choices", "version": 7}
    assert (found["num_items"], found["seed"], found["dropped"]) == (N, 3, {"no right answer": 17})
    assert found["guessing"] == 0.25
    told, fused = found["methods"]["text_to_text"], found["methods"]["c2c"]
    assert (told["sharer_tokens"], told["prefill_ms"]) == (MESSAGE_TOKENS, pytest.approx(900))
    assert fused["handed_over_bytes"] == 100 * BYTES_PER_TOKEN
    assert fused["truncated"] == fused["unread"] == pytest.approx(0.1)


def test_the_headline_comes_first_and_says_what_part_is_question_specific(tmp_path):
    found = findings(results(clear()))
    first = sections(found, tmp_path)[0]
    gain = found["question_specific_gain"]["difference"]
    interval = f"[+{100 * gain['low']:.1f}, +{100 * gain['high']:.1f}]"
    assert first.title == "Question-specific gain"
    assert first.text.startswith("> **+84.0 points** *question-specific gain*: C2C less the best control")
    assert f"Of the +85.0 points over the receiver, **+84.0 {interval} are question-specific**" in first.text
    assert "not significant" not in first.text


def test_a_gain_that_controls_have_too_is_not_called_one(tmp_path):
    _, words = said(clear(wrong_question=372), tmp_path)
    assert words.startswith("No question-specific gain was found > **+2.0 points, not significant**")
    assert "C2C less wrong_question, the best of the controls, is +2.0" in words
    assert "The +85.0 points over the receiver may thus owe nothing to what the sharer knows" in words
    assert "are question-specific**" not in words


def test_a_control_that_is_better_leaves_no_gain(tmp_path):
    _, words = said(clear(c2c=200, wrong_question=380), tmp_path)
    assert "**No question-specific gain was found:** C2C less wrong_question" in words
    assert "so C2C is significantly worse (p < 0.001)" in words
    assert "cannot be ruled out" not in words


def test_controls_that_do_harm_do_not_enlarge_the_gain():
    found = findings(results(clear(receiver=200, wrong_question=40, zero_update=41)))
    assert found["question_specific_gain"]["over"] == "receiver"
    assert found["question_specific_gain"]["difference"] == found["raw_gain"]["difference"]


def test_every_difference_that_is_not_significant_is_called_so(tmp_path):
    found = findings(results(clear(text_to_text=378, wrong_question=379, receiver=375)))
    table = next(iter(sections(found, tmp_path)[2].tables.values()))
    verdicts = dict(zip(table["C2C less"], table["verdict"]))
    for name, comparison in found["comparisons"].items():
        assert verdicts[name] == ("c2c better" if comparison["significant"] else "not significant")
    assert verdicts["text_to_text"] == verdicts["receiver"] == "not significant"
    headline = sections(found, tmp_path)[0].text
    assert headline.count("points, not significant**") == 2  # the gain, and the raw gain


def test_without_generic_controls_the_gain_is_unverified(tmp_path):
    scores = {name: values for name, values in clear().items() if name not in ("wrong_question", "zero_update")}
    found, words = said(scores | {"shuffled_choices": scores["c2c"]}, tmp_path)
    assert found["question_specific_gain"] is None
    assert words.startswith("The gain is unverified")
    assert "**This gain is unverified.** No generic control was asked" in words
    assert found["methods"]["shuffled_choices"]["control"]


def test_without_c2c_there_is_no_headline(tmp_path):
    found, words = said({"receiver": right(40, N), "wrong_question": right(30, N)}, tmp_path)
    assert (found["comparisons"], found["raw_gain"], found["question_specific_gain"]) == ({}, None, None)
    assert words.startswith("No headline: C2C was not asked")
    assert "points" not in words


def test_without_the_receiver_the_gain_is_over_the_controls_alone(tmp_path):
    found, words = said({"c2c": right(300, N), "wrong_question": right(100, N)}, tmp_path)
    assert found["raw_gain"] is None
    assert "points above wrong_question, the best of the controls. The receiver alone was not asked" in words


def test_partial_credit_is_a_score_and_has_its_own_test(tmp_path):
    rng = np.random.default_rng(0)
    scores = {"receiver": rng.random(60) * 0.5, "c2c": rng.random(60), "wrong_question": rng.random(60) * 0.6}
    found, words = said(scores, tmp_path, Invented(60, has_choices=False))
    assert (found["measure"], found["guessing"]) == ("score", None)
    assert "ccuracy" not in words
    assert f"Mean score (of 100) on 60 questions: c2c {100 * scores['c2c'].mean():.1f}" in words
    assert "sign-flip permutation" in words
    assert "McNemar" not in words


def test_other_items_are_told_apart():
    def items(benchmark):
        return findings(results({"receiver": right(5, 20)}, benchmark))["items"]

    assert items(Invented(20)) == items(Invented(20, version=3))
    assert items(Invented(20)) != items(Invented(20, has_choices=False))


def test_what_was_left_out_is_named_with_the_reason(tmp_path):
    of = results(clear())
    of.left_out["calibrated_receiver"] = "the questions have no <choices>"
    text = sections(findings(of), tmp_path)[-1].text
    assert r"Not asked: calibrated_receiver, because the questions have no \<choices>." in text
    assert "Left out: 17 records (no right answer)." in text


def test_the_guide_explains_every_control_that_was_asked():
    words = " ".join(part.text for part in reading_guide([findings(results(clear()))]))
    for term in (
        "receiver",
        "sharer",
        "fuser",
        "wrong_question",
        "zero_update",
        "Question-specific gain",
        "p",
        "Points",
    ):
        assert f"**{term}**" in words
    assert "mean_update" not in words
