"""Numbers of a report against the statistics they name, and the words that are made of them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from c2c_lightning.evaluation.report.findings import Findings, findings
from c2c_lightning.evaluation.report.page import NOT_SIGNIFICANT
from c2c_lightning.evaluation.report.statistics import accuracy, compare, question_specific_gain
from c2c_lightning.evaluation.report.wording import headline, reading_guide, sections
from c2c_lightning.files import check_json, json_text
from tests.evaluation.invented import BYTES_PER_TOKEN, MESSAGE_TOKENS, Invented, results, right

N = 400
CLEAR = {"receiver": 40, "sharer": 10, "text_to_text": 200, "c2c": 380, "wrong_question": 44, "zero_update": 40}


def clear(**others: int) -> dict[str, np.ndarray]:
    """Scores of an evaluation in which C2C is far above everything, but for `others`."""
    return {name: right(number, N) for name, number in (CLEAR | others).items()}


def said(scores) -> str:
    """The headline, without line breaks."""
    first = headline(findings(results(scores)))
    return " ".join(f"{first.title} {first.text}".replace("\u00a0", " ").split())


def everything(found, folder) -> str:
    """All words of a report."""
    parts = [*sections(found, folder), *reading_guide([found])]
    return " ".join(f"{part.title} {part.text} {[t.to_dict() for t in part.tables.values()]}" for part in parts)


def test_every_number_is_the_statistic_it_is_named_after():
    scores = clear()
    found = findings(results(scores, seed=3))
    for name in scores:
        assert found.methods[name].accuracy == accuracy(scores[name])
        if name != "c2c":
            assert found.comparisons[name] == compare(scores["c2c"], scores[name], seed=3)
    controls = {name: scores[name] for name in ("wrong_question", "zero_update", "receiver")}
    gain = found.question_specific_gain
    assert gain == question_specific_gain(scores["c2c"], controls, seed=3)
    assert gain.significant
    assert gain.difference.value == pytest.approx((380 - 44) / N)
    assert found.raw_gain == found.comparisons["receiver"]


def test_findings_say_what_was_asked_and_what_it_cost():
    found = findings(results(clear(), Invented(N, version=7), seed=3))
    assert (found.prompt.name, found.prompt.version) == ("choices", 7)
    assert (found.num_items, found.seed, found.dropped) == (N, 3, {"no right answer": 17})
    assert found.guessing == 0.25
    told, fused = found.methods["text_to_text"], found.methods["c2c"]
    assert (told.sharer_tokens, told.prefill_ms) == (MESSAGE_TOKENS, pytest.approx(900))
    assert fused.handed_over_bytes == 100 * BYTES_PER_TOKEN
    assert fused.truncated == fused.unread == pytest.approx(0.1)


def test_the_headline_comes_first_and_says_what_part_is_question_specific(tmp_path):
    found = findings(results(clear()))
    first = sections(found, tmp_path)[0]
    gain = found.question_specific_gain.difference
    interval = f"[+{100 * gain.low:.1f}, +{100 * gain.high:.1f}]"
    assert first.title == "Question-specific gain"
    assert first.text.startswith(
        "> **+84.0 points** *question-specific gain*: C2C less wrong_question, the best of the controls"
    )
    assert f"C2C is **+84.0 {interval} points** above wrong_question, the best of the controls" in first.text
    assert "not significant" not in first.text


def test_a_gain_that_controls_have_too_is_not_called_one():
    words = said(clear(wrong_question=372))
    assert words.startswith("No question-specific gain was found > **+2.0 points, not significant**")
    assert "C2C less wrong_question, the best of the controls, is +2.0" in words
    assert "What C2C has above the receiver alone may owe nothing to what the sharer knows" in words
    assert "come from what the sharer" not in words


def test_a_control_that_is_better_leaves_no_gain():
    words = said(clear(c2c=200, wrong_question=380))
    assert "**No question-specific gain was found:** C2C is significantly worse than wrong_question" in words
    assert "−45.0" in words


def test_controls_that_do_harm_do_not_enlarge_the_gain():
    scores = clear(receiver=200, wrong_question=40, zero_update=41)
    found = findings(results(scores))
    assert found.question_specific_gain.over == "receiver"
    assert found.question_specific_gain.difference == found.raw_gain.difference
    assert "points** above the receiver alone, which no control exceeds. These points are question-specific" in said(
        scores
    )


@pytest.mark.parametrize("receiver", [40, 180, 240, 300])
@pytest.mark.parametrize("wrong_question", [40, 180, 240, 300])
def test_the_gain_is_never_larger_than_the_raw_one_nor_more_certain(receiver, wrong_question):
    found = findings(results(clear(c2c=220, receiver=receiver, wrong_question=wrong_question)))
    gain, raw = found.question_specific_gain, found.raw_gain
    assert gain.difference.value <= raw.difference.value
    assert gain.p >= raw.p
    assert raw.significant or not gain.significant


def test_a_gain_over_the_best_control_alone_is_none():
    c2c = np.repeat([1, 0], [300, 100])
    almost_as_good, quite_different = c2c.copy(), c2c.copy()
    almost_as_good[:10] = 0  # 290 right, and C2C better wherever they differ
    quite_different[:110], quite_different[300:] = 0, 1  # 289 right, but others
    quite_different[399] = 0
    scores = {"c2c": c2c, "zero_update": almost_as_good, "wrong_question": quite_different}
    found = findings(results(scores))
    assert found.comparisons["zero_update"].significant
    assert not found.question_specific_gain.significant
    assert "C2C less zero_update, the best of the controls, is +2.5" in said(scores)
    assert "points, not significantly above every control (p =" in said(scores)


def test_a_gain_without_the_wrong_question_is_reported_with_a_warning():
    scores = clear()
    del scores["wrong_question"]
    words = said(scores)
    assert "No control that was asked gives these points, but the sharer's cache of another question was not" in words
    assert "come from what the sharer's cache says" not in words


@pytest.mark.parametrize("receiver", [200, 380])
def test_without_controls_and_without_a_raw_gain_nothing_is_called_one(receiver):
    words = said({"receiver": right(receiver, N), "c2c": right(200, N)})
    assert words.startswith("No gain over the receiver was found")
    assert "C2C is not significantly above the receiver alone" in words
    assert "unverified" not in words


def test_with_nothing_to_improve_on_there_is_no_headline():
    words = said({"sharer": right(20, N), "c2c": right(200, N)})
    assert words.startswith("No headline: there is nothing that C2C should improve on")


def test_every_difference_that_is_not_significant_is_called_so(tmp_path):
    found = findings(results(clear(text_to_text=378, wrong_question=379, receiver=375)))
    table = next(iter(sections(found, tmp_path)[2].tables.values()))
    verdicts = dict(zip(table["C2C less"], table["verdict"]))
    for name, comparison in found.comparisons.items():
        assert verdicts[name] == ("C2C better" if comparison.significant else "not significant")
    assert verdicts["text_to_text"] == verdicts["receiver"] == "not significant"
    headline = sections(found, tmp_path)[0].text
    assert headline.count("points, not significant**") == 2  # the gain, and the raw gain


def test_without_generic_controls_the_gain_is_unverified():
    scores = {name: values for name, values in clear().items() if name not in ("wrong_question", "zero_update")}
    scores |= {"shuffled_choices": scores["c2c"]}
    found = findings(results(scores))
    assert found.question_specific_gain is None
    assert said(scores).startswith("The gain is unverified")
    assert "**This gain is unverified.** No generic control was asked" in said(scores)
    assert found.methods["shuffled_choices"].control


def test_without_c2c_there_is_no_headline(tmp_path):
    scores = {"receiver": right(40, N), "wrong_question": right(30, N)}
    found = findings(results(scores))
    assert (found.comparisons, found.raw_gain, found.question_specific_gain) == ({}, None, None)
    assert said(scores).startswith("No headline: C2C was not asked")
    assert not any("points" in part.text for part in sections(found, tmp_path))


def test_without_the_receiver_the_gain_is_over_the_controls_alone():
    scores = {"c2c": right(300, N), "wrong_question": right(100, N)}
    assert findings(results(scores)).raw_gain is None
    assert "points** above wrong_question, the best of the controls." in said(scores)
    assert "raw gain" not in said(scores)


def test_partial_credit_is_a_score_and_has_its_own_test(tmp_path):
    rng = np.random.default_rng(0)
    scores = {"receiver": rng.random(60) * 0.5, "c2c": rng.random(60), "wrong_question": rng.random(60) * 0.6}
    found = findings(results(scores, Invented(60, choices=())))
    words = " ".join(f"{part.title} {part.text} {part.tables}" for part in sections(found, tmp_path))
    assert (found.measure, found.guessing) == ("score", None)
    assert "ccuracy" not in words
    assert "Methods: score (of 100) with 95% intervals on 60 questions" in words
    assert {comparison.test for comparison in found.comparisons.values()} == {"sign-flip permutation"}


def test_scores_of_a_whole_evaluation_are_called_the_same_in_each_part():
    scores = {"receiver": right(20, 60), "c2c": right(50, 60), "text_to_text": np.linspace(0, 1, 60)}
    whole = results(scores)
    assert whole.measure == "score"
    assert findings(whole, ["receiver", "c2c"]).measure == "score"
    del scores["text_to_text"]
    assert findings(results(scores)).measure == "accuracy"


def test_c2c_is_spelt_one_way(tmp_path):
    words = everything(findings(results(clear())), tmp_path)
    assert "only C2C right" in words
    assert not re.search(r"\bc2c\b", words)


def test_other_items_are_told_apart():
    def items(benchmark):
        return findings(results({"receiver": right(5, 20)}, benchmark)).items

    assert items(Invented(20)) == items(Invented(20, version=3))
    assert items(Invented(20)) != items(Invented(20, choices=()))


def test_what_was_left_out_or_merged_is_named_with_the_reason(tmp_path):
    of = results(clear(), seed=7)
    of.left_out["calibrated_receiver"] = "the questions have no <choices>"
    assert "Merged" not in sections(findings(of), tmp_path)[-1].text
    of.merged = 3
    text = sections(findings(of), tmp_path)[-1].text
    assert "Merged: turns of 3 questions, which a chat template refused." in text
    assert r"Not asked: calibrated_receiver, because the questions have no \<choices>." in text
    assert "Left out: 17 records (no right answer)." in text
    assert "resampling): 7." in text


def test_the_guide_explains_every_word_and_every_method_that_was_asked():
    scores = clear() | {"shuffled_choices": right(380, N)}
    (table,) = reading_guide([findings(results(scores))])[0].tables.values()
    words = dict(zip(table["word"], table["meaning"]))
    assert len(words) == len(table)
    terms = {"fuser", "C2C", "control", "generic control", "raw gain", "question-specific gain", "p", "points"}
    assert words.keys() >= terms | scores.keys() - {"c2c"}
    assert words["wrong_question"].startswith("generic control; C2C with the sharer's cache of another question")
    assert words["shuffled_choices"].startswith("control, but not generic")
    assert "mean_update" not in words


def test_findings_fit_the_schema_that_reads_them_again():
    found = findings(results(clear()))
    assert check_json(json_text(found), Findings, "findings") == found


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
