"""Numbers of a report against the statistics they name, and the words that are made of them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from c2c_lightning.evaluation.report.findings import FINDINGS, findings
from c2c_lightning.evaluation.report.formatting import NOT_SIGNIFICANT
from c2c_lightning.evaluation.report.headline import headline
from c2c_lightning.evaluation.report.reading_guide import reading_guide
from c2c_lightning.evaluation.report.statistics import accuracy, compare, question_specific_gain
from c2c_lightning.evaluation.report.wording import sections
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
    assert first.text.startswith(
        "> **+84.0 points** *question-specific gain*: C2C less wrong_question, the best of the controls"
    )
    assert f"C2C is **+84.0 {interval} points** above wrong_question, the best of the controls" in first.text
    assert "not significant" not in first.text


def test_a_gain_that_controls_have_too_is_not_called_one(tmp_path):
    _, words = said(clear(wrong_question=372), tmp_path)
    assert words.startswith("No question-specific gain was found > **+2.0 points, not significant**")
    assert "C2C less wrong_question, the best of the controls, is +2.0" in words
    assert "The +85.0 points over the receiver may thus owe nothing to what the sharer knows" in words
    assert "points are question-specific" not in words


def test_a_control_that_is_better_leaves_no_gain(tmp_path):
    _, words = said(clear(c2c=200, wrong_question=380), tmp_path)
    assert "**No question-specific gain was found:** C2C less wrong_question" in words
    assert "so C2C is significantly worse (p < 0.001)" in words
    assert "cannot be ruled out" not in words


def test_controls_that_do_harm_do_not_enlarge_the_gain(tmp_path):
    found, words = said(clear(receiver=200, wrong_question=40, zero_update=41), tmp_path)
    assert found["question_specific_gain"]["over"] == "receiver"
    assert found["question_specific_gain"]["difference"] == found["raw_gain"]["difference"]
    assert "points** above the receiver alone, which no control exceeds. These points are question-specific" in words
    assert "Above the receiver alone C2C is" not in words  # it would be the same number again


@pytest.mark.parametrize("receiver", [40, 180, 240, 300])
@pytest.mark.parametrize("wrong_question", [40, 180, 240, 300])
def test_the_gain_is_never_larger_than_the_raw_one_nor_more_certain(receiver, wrong_question):
    found = findings(results(clear(c2c=220, receiver=receiver, wrong_question=wrong_question)))
    gain, raw = found["question_specific_gain"], found["raw_gain"]
    assert gain["difference"]["value"] <= raw["difference"]["value"]
    assert gain["p"] >= raw["p"]
    assert raw["significant"] or not gain["significant"]


def test_a_gain_over_the_best_control_alone_is_none(tmp_path):
    c2c = np.repeat([1, 0], [300, 100])
    almost_as_good, quite_different = c2c.copy(), c2c.copy()
    almost_as_good[:10] = 0  # 290 right, and C2C better wherever they differ
    quite_different[:110], quite_different[300:] = 0, 1  # 289 right, but others
    quite_different[399] = 0
    found, words = said({"c2c": c2c, "zero_update": almost_as_good, "wrong_question": quite_different}, tmp_path)
    assert found["comparisons"]["zero_update"]["significant"]
    assert not found["question_specific_gain"]["significant"]
    assert "C2C less zero_update, the best of the controls, is +2.5" in words
    assert "points, but not significantly above every control (p =" in words


def test_a_gain_without_the_wrong_question_is_reported_with_a_warning(tmp_path):
    scores = clear()
    del scores["wrong_question"]
    _, words = said(scores, tmp_path)
    assert "no control that was asked gives them. But the sharer's cache of another question was not tried" in words
    assert "they come from what the sharer's cache says" not in words


@pytest.mark.parametrize(
    ("receiver", "sentence"),
    [(200, "is not significant (p = "), (380, "C2C is significantly worse than the receiver alone (−45.0")],
)
def test_without_controls_and_without_a_raw_gain_nothing_is_called_one(tmp_path, receiver, sentence):
    _, words = said({"receiver": right(receiver, N), "c2c": right(200, N)}, tmp_path)
    assert words.startswith("No gain over the receiver was found")
    assert sentence in words
    assert "unverified" not in words


def test_with_nothing_to_improve_on_there_is_no_headline(tmp_path):
    _, words = said({"sharer": right(20, N), "c2c": right(200, N)}, tmp_path)
    assert words.startswith("No headline: there is nothing that C2C should improve on")


def test_every_difference_that_is_not_significant_is_called_so(tmp_path):
    found = findings(results(clear(text_to_text=378, wrong_question=379, receiver=375)))
    table = next(iter(sections(found, tmp_path)[2].tables.values()))
    verdicts = dict(zip(table["C2C less"], table["verdict"]))
    for name, comparison in found["comparisons"].items():
        assert verdicts[name] == ("C2C better" if comparison["significant"] else "not significant")
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
    assert "points** above wrong_question, the best of the controls." in words
    assert "The receiver alone was not asked, so it remains open" in words


def test_partial_credit_is_a_score_and_has_its_own_test(tmp_path):
    rng = np.random.default_rng(0)
    scores = {"receiver": rng.random(60) * 0.5, "c2c": rng.random(60), "wrong_question": rng.random(60) * 0.6}
    found, words = said(scores, tmp_path, Invented(60, choices=()))
    assert (found["measure"], found["guessing"]) == ("score", None)
    assert "ccuracy" not in words
    assert f"Mean score (of 100) on 60 questions: C2C {100 * scores['c2c'].mean():.1f}" in words
    assert "sign-flip permutation" in words
    assert "McNemar" not in words


def test_scores_of_a_whole_evaluation_are_called_the_same_in_each_part():
    scores = {"receiver": right(20, 60), "c2c": right(50, 60), "text_to_text": np.linspace(0, 1, 60)}
    whole = results(scores)
    assert whole.measure == "score"
    assert findings(whole.only(["receiver", "c2c"]))["measure"] == "score"
    del scores["text_to_text"]
    assert findings(results(scores))["measure"] == "accuracy"


def test_c2c_is_spelt_one_way(tmp_path):
    _, words = said(clear(), tmp_path)
    assert "only C2C right" in words
    assert not re.search(r"\bc2c\b", words)


def test_other_items_are_told_apart():
    def items(benchmark):
        return findings(results({"receiver": right(5, 20)}, benchmark))["items"]

    assert items(Invented(20)) == items(Invented(20, version=3))
    assert items(Invented(20)) != items(Invented(20, choices=()))


def test_what_was_left_out_is_named_with_the_reason(tmp_path):
    of = results(clear(), seed=7)
    of.left_out["calibrated_receiver"] = "the questions have no <choices>"
    text = sections(findings(of), tmp_path)[-1].text
    assert r"Not asked: calibrated_receiver, because the questions have no \<choices>." in text
    assert "Left out: 17 records (no right answer)." in text
    assert "resampling): 7." in text


def test_the_guide_explains_every_word_and_every_method_that_was_asked():
    scores = clear() | {"shuffled_choices": right(380, N)}
    words = " ".join(part.text for part in reading_guide([findings(results(scores))]))
    terms = ["fuser", "C2C", "control", "generic control", "Raw gain", "Question-specific gain", "p", "Points"]
    for term in (*terms, *(name for name in scores if name != "c2c")):
        assert words.count(f"**{term}**") == 1
    assert "**wrong_question**: generic control; C2C with the sharer's cache of another question" in words
    assert "**shuffled_choices**: control, but not generic" in words
    assert "mean_update" not in words


def test_what_findings_hold_is_listed():
    assert findings(results(clear())).keys() == FINDINGS


def test_a_loss_is_told_with_its_own_certainty():
    found = findings(results({"receiver": [1] * 60 + [0] * 40, "c2c": [0] * 60 + [0] * 40, "zero_update": [0] * 100}))
    text = headline(found).text
    assert "**−60.0 points** *question-specific gain*" in text
    assert "significantly worse" in text
    assert NOT_SIGNIFICANT not in text


def test_few_questions_are_said_to_be_few():
    few, many = (results({"receiver": [0] * n, "c2c": [1] * n, "zero_update": [0] * n}) for n in (20, 100))
    assert "With fewer than 50 questions" in headline(findings(few)).text
    assert "With fewer than 50 questions" not in headline(findings(many)).text
