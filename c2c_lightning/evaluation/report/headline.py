"""The first words of a report on one benchmark: what C2C gained, and what of it came from the sharer's knowledge.

A difference that is not significant is never called anything else.
"""

from __future__ import annotations

from typing import Any

from c2c_lightning.drawing.style import shown
from c2c_lightning.evaluation.report.findings import C2C, RECEIVER, SHARER, TEXT_TO_TEXT, WRONG_QUESTION, Findings
from c2c_lightning.evaluation.report.formatting import (
    NOT_SIGNIFICANT,
    p_in_words,
    plain,
    points,
    points_with_interval,
    score,
)
from c2c_lightning.evaluation.report.section import Section

FEW = 50  # questions


def headline(found: Findings) -> Section:
    """What C2C has above the controls and above the receiver, how certain that is, and how well the methods do."""
    if C2C not in found["methods"]:
        text = "C2C was not among the methods, so there is no gain to report; the tables below compare nothing with it."
        return Section("No headline: C2C was not asked", f"{text}\n\n{_levels(found)}")
    gain, raw = found["question_specific_gain"], found["raw_gain"]
    numbers = []
    if gain:
        numbers.append(
            _headline_number(gain_as_told(found), "question-specific gain", f"C2C less {_best_control(gain)}")
        )
    if raw:
        numbers.append(_headline_number(raw, "raw gain", "C2C less the receiver alone"))
    title, meaning = _meaning(found) if gain else _without_controls(raw)
    return Section(title, "\n\n".join([*numbers, meaning, *_caution(found), _levels(found)]))


def gain_as_told(found: Findings) -> dict[str, Any]:
    """The question-specific gain; a loss with the certainty of the one comparison that it is."""
    gain = found["question_specific_gain"]
    # That C2C is above every control is never likely where it is below one: that p says nothing of the loss.
    return gain if gain["difference"]["value"] > 0 else gain | found["comparisons"][gain["over"]]


def _caution(found: Findings) -> list[str]:
    """What has to be said where there are few questions."""
    if found["num_items"] >= FEW:
        return []
    return [
        f"With fewer than {FEW} questions the bootstrapped intervals of differences are too narrow, and of no width "
        "where all differences are alike: let p decide."
    ]


def _headline_number(comparison: dict[str, Any], name: str, words: str) -> str:
    """A number that stands out (see `write_report`), what it is, and how certain."""
    difference = comparison["difference"]
    value = f"{points(difference['value'])} points" + ("" if comparison["significant"] else f", {NOT_SIGNIFICANT}")
    interval = f"95% interval {points(difference['low'])} to {points(difference['high'])}"
    return f"> **{value}** *{name}*: {words}\\\n> {interval}, {p_in_words(comparison['p'])}"


def _best_control(gain: dict[str, Any]) -> str:
    if gain["over"] == RECEIVER:
        return "the receiver alone, which no control exceeds"
    return f"{plain(gain['over'])}, the best of the controls"


def _meaning(found: Findings) -> tuple[str, str]:
    """The headline in a title and plain sentences, where controls were asked."""
    gain, raw = found["question_specific_gain"], found["raw_gain"]
    value = f"{points_with_interval(gain['difference'])} points"
    if not gain["significant"]:
        difference = f"C2C less {_best_control(gain)}, is {value}"
        why = _insignificance(gain, found["comparisons"][gain["over"]])
        text = f"**No question-specific gain was found:** {difference}{why}{_unspecific(gain, raw)}"
        return "No question-specific gain was found", text
    text = f"C2C is **{value}** above {_best_control(gain)}. These points are question-specific: "
    if WRONG_QUESTION in found["methods"]:
        text += "no control gives them, so they come from what the sharer's cache says about the question at hand."
    else:
        text += (
            "no control that was asked gives them. But the sharer's cache of another question was not tried, so ask "
            f"again with the control {plain(WRONG_QUESTION)} before you rely on it."
        )
    if raw is None:
        text += " The receiver alone was not asked, so it remains open what share of C2C's whole gain this is."
    elif gain["over"] != RECEIVER:
        text += f" {_over_the_receiver(raw)}"
    return "Question-specific gain", text


def _insignificance(gain: dict[str, Any], comparison: dict[str, Any]) -> str:
    """Why a difference from the best control is no gain; goes on from the difference."""
    difference = gain["difference"]
    if difference["value"] <= 0 and comparison["significant"]:
        return f", so C2C is significantly worse ({p_in_words(comparison['p'])})."
    if difference["value"] <= 0:
        reason = f", which is {NOT_SIGNIFICANT} ({p_in_words(comparison['p'])})."
    elif comparison["significant"]:  # but it is not above another one, whose mean is lower
        reason = (
            f", but not significantly above every control ({p_in_words(gain['p'])}, the largest over the controls)."
        )
    else:
        reason = f", which is {NOT_SIGNIFICANT} ({p_in_words(gain['p'])}, the largest over the controls)."
    # An interval may lie below 0 where a test on few items sees nothing.
    if difference["high"] <= 0:
        return reason
    return f"{reason} A gain of up to {points(difference['high'])} points cannot be ruled out either."


def _unspecific(gain: dict[str, Any], raw: dict[str, Any] | None) -> str:
    """What the raw gain means where no question-specific gain was found."""
    if raw is None:
        return ""
    if raw["significant"] and raw["difference"]["value"] > 0:
        value = points(raw["difference"]["value"])
        return f" The {value} points over the receiver may thus owe nothing to what the sharer knows of the question."
    return "" if gain["over"] == RECEIVER else f" {_over_the_receiver(raw)}"


def _over_the_receiver(raw: dict[str, Any]) -> str:
    """The raw gain in a sentence."""
    value = f"{points_with_interval(raw['difference'])} points"
    if not raw["significant"]:
        return f"The difference from the receiver alone, {value}, is {NOT_SIGNIFICANT} ({p_in_words(raw['p'])})."
    if raw["difference"]["value"] < 0:
        return f"C2C is significantly worse than the receiver alone ({value})."
    return f"Above the receiver alone C2C is {value}."


def _without_controls(raw: dict[str, Any] | None) -> tuple[str, str]:
    """The headline in a title and plain sentences, where no generic control was asked."""
    if raw is None:
        text = "Neither the receiver alone nor a generic control was asked, so there is no gain to report."
        return "No headline: there is nothing that C2C should improve on", text
    if not raw["significant"] or raw["difference"]["value"] < 0:
        return "No gain over the receiver was found", f"{_over_the_receiver(raw)} No generic control was asked."
    return "The gain is unverified", (
        "**This gain is unverified.** No generic control was asked: nothing here tells how much of it came from "
        "what the sharer knows of the question, and how much any cache would have given, even that of another "
        "question. Ask again with controls (model.controls) before you rely on it."
    )


def _levels(found: Findings) -> str:
    """How well the main methods do, and how well a guess would."""
    methods, measure = found["methods"], found["measure"]
    gain = found["question_specific_gain"]
    over = gain["over"] if gain else None
    names = dict.fromkeys((C2C, RECEIVER, SHARER, TEXT_TO_TEXT, over))
    said = [f"{plain(shown(n))} {score(methods[n]['accuracy']['value'], measure)}" for n in names if n in methods]
    unit = "Accuracy" if measure == "accuracy" else "Mean score (of 100)"
    guess = "" if found["guessing"] is None else f" Guessing would give {score(found['guessing'], measure)}."
    return f"{unit} on {found['num_items']:,} questions: {', '.join(said)}.{guess}" if said else guess.strip()
