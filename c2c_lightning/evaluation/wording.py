"""The words of a report on one benchmark: what was found, beginning with what matters most.

A difference that is not significant is never called anything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from c2c_lightning.evaluation.findings import C2C, RECEIVER, TEXT_TO_TEXT, Findings
from c2c_lightning.evaluation.forest import ACCENT, INK, PALE, Row, draw_forest
from c2c_lightning.evaluation.formatting import (
    NOT_SIGNIFICANT,
    NOTHING,
    p_in_words,
    p_value,
    percent,
    plain,
    points,
    points_with_interval,
    score,
    score_interval,
    size,
    verdict,
)
from c2c_lightning.evaluation.section import Section

ANSWER_MODES = {
    "logits": "the choice whose letter is the most probable beginning of the response",
    "generate": "read out of the text that was generated",
}


def sections(found: Findings, figures: Path) -> list[Section]:
    """What was found on one benchmark.

    Args:
        found: by `findings`.
        figures: folder for its figures.
    """
    written = [_headline(found), _scores(found, figures)]
    if found["comparisons"]:
        written.append(_comparisons(found, figures))
    return [*written, _cost(found), _setting(found)]


def _headline(found: Findings) -> Section:
    if C2C not in found["methods"]:
        text = "C2C was not among the methods, so there is no gain to report; the tables below compare nothing with it."
        return Section("No headline: C2C was not asked", f"{text}\n\n{_levels(found)}")
    gain, raw = found["question_specific_gain"], found["raw_gain"]
    numbers = []
    if gain:
        words = f"C2C less the best control, {plain(gain['over'])}"
        numbers.append(_headline_number(gain, "question-specific gain", words))
    if raw:
        numbers.append(_headline_number(raw, "raw gain", "C2C less the receiver alone"))
    title = "The gain is unverified"
    if gain:
        title = "Question-specific gain" if gain["significant"] else "No question-specific gain was found"
    return Section(title, "\n\n".join([*numbers, _meaning(found), _levels(found)]))


def _headline_number(comparison: dict[str, Any], name: str, words: str) -> str:
    """A number that stands out (see `write_report`), what it is, and how certain."""
    difference = comparison["difference"]
    value = f"{points(difference['value'])} points" + ("" if comparison["significant"] else f", {NOT_SIGNIFICANT}")
    interval = f"95% interval {points(difference['low'])} to {points(difference['high'])}"
    return f"> **{value}** *{name}*: {words}\\\n> {interval}, {p_in_words(comparison['p'])}"


def _meaning(found: Findings) -> str:
    """The headline in plain sentences."""
    gain, raw = found["question_specific_gain"], found["raw_gain"]
    if gain is None:
        return (
            "**This gain is unverified.** No generic control was asked: nothing here tells how much of it came from "
            "what the sharer knows of the question, and how much any cache would have given, even that of another "
            "question. Ask again with controls before you rely on it."
        )
    best = f"{plain(gain['over'])}, the best of the controls"
    value = points_with_interval(gain["difference"])
    if not gain["significant"]:
        difference = f"C2C less {best}, is {value} points, {_insignificance(gain, found['comparisons'][gain['over']])}"
        return f"**No question-specific gain was found:** {difference}{_unspecific(raw)}"
    if raw is None:
        return (
            f"C2C is **{value}** points above {best}. The receiver alone was not asked, so it remains open what share "
            "of C2C's whole gain this is."
        )
    return (
        f"Of the {points(raw['difference']['value'])} points over the receiver, **{value} are question-specific**: no "
        "control gives them, so they come from what the sharer's cache says about the question at hand."
    )


def _insignificance(gain: dict[str, Any], comparison: dict[str, Any]) -> str:
    """Why a difference from the best control is no gain."""
    difference = gain["difference"]
    if difference["value"] > 0:
        reason = f"which is {NOT_SIGNIFICANT} ({p_in_words(gain['p'])}, the largest over the controls)."
    elif comparison["significant"]:
        return f"so C2C is significantly worse ({p_in_words(comparison['p'])})."
    else:
        reason = f"which is {NOT_SIGNIFICANT} ({p_in_words(comparison['p'])})."
    # An interval may lie below 0 where a test on few items sees nothing.
    if difference["high"] <= 0:
        return reason
    return f"{reason} A gain of up to {points(difference['high'])} points cannot be ruled out either."


def _unspecific(raw: dict[str, Any] | None) -> str:
    """What the raw gain means where no question-specific gain was found."""
    if raw is None:
        return ""
    value = points(raw["difference"]["value"])
    if not raw["significant"]:
        return f" The difference from the receiver, {value} points, is {NOT_SIGNIFICANT} ({p_in_words(raw['p'])})."
    if raw["difference"]["value"] < 0:
        return f" C2C is significantly worse than the receiver alone ({value} points)."
    return f" The {value} points over the receiver may thus owe nothing to what the sharer knows of the question."


def _levels(found: Findings) -> str:
    """How well the main methods do, and how well a guess would."""
    methods, measure = found["methods"], found["measure"]
    gain = found["question_specific_gain"]
    over = gain["over"] if gain else None
    names = dict.fromkeys((C2C, RECEIVER, "sharer", TEXT_TO_TEXT, over))
    said = [f"{plain(n)} {score(methods[n]['accuracy']['value'], measure)}" for n in names if n in methods]
    unit = "Accuracy" if measure == "accuracy" else "Mean score (of 100)"
    guess = "" if found["guessing"] is None else f" Guessing would give {percent(found['guessing'])}."
    return f"{unit} on {found['num_items']:,} questions: {', '.join(said)}.{guess}" if said else guess.strip()


def _scores(found: Findings, figures: Path) -> Section:
    measure, methods = found["measure"], found["methods"]
    by_kind = {
        "Methods": {name: m for name, m in methods.items() if not m["control"]},
        "Controls": {name: m for name, m in methods.items() if m["control"]},
    }
    unit = "accuracy" if measure == "accuracy" else "score (of 100)"
    caption = f"{unit} with 95% intervals on {found['num_items']:,} questions"
    tables = {f"{kind}: {caption}": _score_table(rows, measure, unit) for kind, rows in by_kind.items() if rows}
    rows = [_score_row(name, m, measure) for kind in by_kind.values() for name, m in kind.items()]
    file = draw_forest(
        rows, f"{unit}, %" if measure == "accuracy" else unit, figures / "scores.png", found["guessing"], "guessing"
    )
    text = (
        "A generic control knows nothing from the sharer about the question it answers; what C2C has above all of "
        "them is question-specific. *Unread* are the answers in which nothing could be read as an answer, and "
        "*truncated* those that reached the token limit: both count as they were graded, mostly as wrong."
    )
    return Section(unit.capitalize(), text, tables, {f"{unit.capitalize()} with 95% intervals; controls hollow": file})


def _score_table(rows: dict[str, dict[str, Any]], measure: str, unit: str) -> pd.DataFrame:
    table = [
        {
            "": name,
            unit: score(m["accuracy"]["value"], measure),
            "95% interval": score_interval(m["accuracy"], measure),
            "unread": percent(m["unread"]),
            "truncated": percent(m["truncated"]),
            "what it is": m["description"] + (" (generic)" if m["generic"] else ""),
        }
        for name, m in rows.items()
    ]
    return pd.DataFrame(table)


def _score_row(name: str, method: dict[str, Any], measure: str) -> Row:
    estimate = method["accuracy"]
    numbers = f"{score(estimate['value'], measure)} {score_interval(estimate, measure)}"
    return Row(name, estimate, numbers, ACCENT if name == C2C else INK, hollow=method["control"])


def _comparisons(found: Findings, figures: Path) -> Section:
    rows, drawn = [], []
    is_better = "right" if found["measure"] == "accuracy" else "better"
    for name, comparison in found["comparisons"].items():
        rows.append(
            {
                "C2C less": name,
                "difference in points [95% interval]": points_with_interval(comparison["difference"]),
                "p": p_value(comparison["p"]),
                "verdict": verdict(comparison, C2C, name),
                f"only c2c {is_better}": f"{comparison['only_c2c']:,}",
                f"only the other {is_better}": f"{comparison['only_other']:,}",
                "test": comparison["test"],
            }
        )
        colour = INK if comparison["significant"] else PALE
        numbers = points_with_interval(comparison["difference"])
        hollow = found["methods"][name]["control"]
        drawn.append(Row(f"c2c − {name}", comparison["difference"], numbers, colour, hollow))
    file = draw_forest(drawn, "difference in points", figures / "differences.png", 0.0, "no difference")
    text = (
        "Every method answered the same questions, so they are compared question by question. The p of a row is that "
        "row's own: it is not corrected for the number of rows."
    )
    caption = f"C2C less each other method, on {found['num_items']:,} questions"
    figure = "C2C less each other method, with 95% intervals; controls hollow, what is not significant grey"
    return Section("C2C against each of the others", text, {caption: pd.DataFrame(rows)}, {figure: file})


def _cost(found: Findings) -> Section:
    rows = [
        {
            "": name,
            "prefill, ms": f"{m['prefill_ms']:,.1f}",
            "decoding, ms": f"{m['decode_ms']:,.1f}",
            "together, ms": f"{m['prefill_ms'] + m['decode_ms']:,.1f}",
            "tokens by receiver": f"{m['receiver_tokens']:,.1f}",
            "tokens by sharer": f"{m['sharer_tokens']:,.1f}",
            "handed over": size(m["handed_over_bytes"]) if m["handed_over_bytes"] else NOTHING,
        }
        for name, m in found["methods"].items()
    ]
    text = (
        "Means over the questions. Times are a question's share of its batch: compare them within this report only, "
        "and measure latency at batch size 1. *Prefill* is all that precedes the response: reading the prompt, "
        "fusion, and a message that the sharer writes. *Handed over* is what passes from sharer to receiver."
    )
    times = {name: m["prefill_ms"] + m["decode_ms"] for name, m in found["methods"].items()}
    if times.get(TEXT_TO_TEXT) and C2C in times:
        share = times[C2C] / times[TEXT_TO_TEXT]
        text = f"C2C takes {share:.2f} times as long as {TEXT_TO_TEXT}.\n\n{text}"
    return Section("What an answer costs", text, {"Cost of one answer": pd.DataFrame(rows)})


def _setting(found: Findings) -> Section:
    prompt, mode = found["prompt"], found["answer_mode"]
    asked = [
        f"{found['num_items']:,} questions of {plain(found['benchmark'])}, "
        f"with the prompt {plain(prompt['name'])}, version {plain(prompt['version'])}.",
        f"The answer is {ANSWER_MODES[mode]}." if mode in ANSWER_MODES else f"Answer mode: {plain(mode)}.",
        f"Seed of partners, shuffles and resampling: {found['seed']}.",
    ]
    asked += [
        f"Left out: {number:,} records ({plain(reason)})." for reason, number in found["dropped"].items() if number
    ]
    asked += [f"Not asked: {plain(name)}, because {plain(reason)}." for name, reason in found["left_out"].items()]
    return Section("What was asked", "\n".join(f"- {line}" for line in asked))
