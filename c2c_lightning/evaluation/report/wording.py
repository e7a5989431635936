"""What a report says of one benchmark: the verdict, scores, comparisons, cost, and what was asked.

A difference that is not significant is never called anything else.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from c2c_lightning.drawing.forest import ACCENT, INK, PALE, Row, draw_forest
from c2c_lightning.drawing.style import shown
from c2c_lightning.evaluation.report.findings import (
    C2C,
    RECEIVER,
    SHARER,
    TEXT_TO_TEXT,
    WRONG_QUESTION,
    Compared,
    Findings,
    MethodFound,
)
from c2c_lightning.evaluation.report.formatting import (
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
from c2c_lightning.evaluation.report.page import Section

FEW = 50  # questions
KINDS = (("Methods", False), ("Controls", True))
# The title and the sentence that a report begins with, by what was found. The first is the only one that calls a gain
# question-specific without a warning.
VERDICTS = {
    "gain": (
        "Question-specific gain",
        "C2C is **{gain} points** above {over}. These points are question-specific: no control gives them, so they come "
        "from what the sharer's cache says about the question at hand.",
    ),
    "gain, wrong question not asked": (
        "Question-specific gain",
        "C2C is **{gain} points** above {over}. No control that was asked gives these points, but the sharer's cache of "
        "another question was not tried: ask again with the control wrong_question before you rely on it.",
    ),
    "no gain": (
        "No question-specific gain was found",
        "**No question-specific gain was found:** C2C less {over}, is {gain} points, not significantly above every control "
        "({p}). What C2C has above the receiver alone may owe nothing to what the sharer "
        "knows of the question.",
    ),
    "loss": (
        "No question-specific gain was found",
        "**No question-specific gain was found:** C2C is significantly worse than {over}: {gain} points ({p}).",
    ),
    "unverified": (
        "The gain is unverified",
        "**This gain is unverified.** No generic control was asked: nothing here tells how much of it came from what the "
        "sharer knows of the question, and how much any cache would have given, even that of another question. Ask again "
        "with controls (model.controls) before you rely on it.",
    ),
    "no raw gain": (
        "No gain over the receiver was found",
        "C2C is not significantly above the receiver alone. No generic control was asked.",
    ),
    "nothing to compare with": (
        "No headline: there is nothing that C2C should improve on",
        "Neither the receiver alone nor a generic control was asked, so there is no gain to report.",
    ),
    "no C2C": (
        "No headline: C2C was not asked",
        "C2C was not among the methods, so there is no gain to report; the tables below compare nothing with it.",
    ),
}
CAUTION = (
    f"With fewer than {FEW} questions the bootstrapped intervals of differences are too narrow, and of no width where all "
    "differences are alike: let p decide."
)
ANSWER_MODES = {
    "logits": "the choice whose letter is the most probable beginning of the response",
    "generate": "read out of the text that was generated",
}
GUIDE = {
    RECEIVER: "the model that answers; it is frozen",
    SHARER: "the model whose knowledge is handed over; it is frozen too",
    "fuser": "the only trained part; it writes the sharer's KV cache of the prompt (what the model keeps of a text that it "
    "has read) into the receiver's",
    "C2C": "Cache-to-Cache: the receiver answers on the cache that the fuser has enriched; no text is passed",
    "control": "C2C or the receiver, changed in one way on purpose, to see what that changes",
    "generic control": "one to which the sharer tells nothing of the question at hand; a gain that it has too was not "
    "communicated",
    "raw gain": "C2C less the receiver alone, on the same questions; any added cache, or a cured liking for some letters, "
    "can give some of it",
    "question-specific gain": "C2C less the best of the generic controls and the receiver alone. It errs on the low side: "
    "the best is chosen after the fact, and p is the largest over all of them, so C2C has to beat every one",
    "points": "percentage points of accuracy, or hundredths of the full score where answers get partial credit",
    "95% interval": "were questions of the same kind drawn again and again, 95 of 100 such intervals would hold the true "
    "value. Wilson's for a method whose answers are right or wrong, otherwise bootstrapped over questions. It says nothing "
    "of what another training of the fuser would give",
    "p": "how often a difference this large would come about if the two were equally good: by the exact McNemar test where "
    "all answers are right or wrong, otherwise by flipping the signs of the questions' differences. Where p and the "
    "interval disagree, p decides",
    NOT_SIGNIFICANT: "p is 0.05 or more: this many questions cannot tell the two apart, which does not say that they are "
    "equal",
    "unread": "no answer could be read out of the response, or its value could not be computed in time",
    "truncated": "the response reached the token limit",
}


def sections(found: Findings, figures: Path) -> list[Section]:
    """What was found on one benchmark.

    Args:
        found: by `findings`.
        figures: folder for its figures.
    """
    written = [headline(found), _scores(found, figures)]
    if found["comparisons"]:
        written.append(_comparisons(found, figures))
    return [*written, _cost(found), _setting(found)]


def headline(found: Findings) -> Section:
    """What C2C gained, and what of it came from the sharer's knowledge of the question."""
    gain, raw = gain_as_told(found), found["raw_gain"]
    title, sentence = VERDICTS[_case(found)]
    numbers = []
    if gain:
        over = "the receiver alone, which no control exceeds"
        if gain["over"] != RECEIVER:
            over = f"{plain(gain['over'])}, the best of the controls"
        value = points_with_interval(gain["difference"])
        sentence = sentence.format(gain=value, over=over, p=p_in_words(gain["p"]))
        numbers.append(_number(gain, "question-specific gain", f"C2C less {over}"))
    if raw:
        numbers.append(_number(raw, "raw gain", "C2C less the receiver alone"))
    caution = [CAUTION] if found["num_items"] < FEW else []
    return Section(title, "\n\n".join([*numbers, sentence, *caution, _levels(found)]))


def gain_as_told(found: Findings) -> Compared | None:
    """The question-specific gain; a loss with the certainty of the one comparison that it is."""
    gain = found["question_specific_gain"]
    # That C2C is above every control is never likely where it is below one: that p says nothing of the loss.
    return gain if gain is None or gain["difference"]["value"] > 0 else gain | found["comparisons"][gain["over"]]


def _case(found: Findings) -> str:
    """Which of VERDICTS holds."""
    gain, raw = gain_as_told(found), found["raw_gain"]
    if C2C not in found["methods"]:
        return "no C2C"
    if gain is None and raw is None:
        return "nothing to compare with"
    if gain is None:
        return "unverified" if raw["significant"] and raw["difference"]["value"] > 0 else "no raw gain"
    if not gain["significant"]:
        return "no gain"
    if gain["difference"]["value"] <= 0:
        return "loss"
    return "gain" if WRONG_QUESTION in found["methods"] else "gain, wrong question not asked"


def _levels(found: Findings) -> str:
    """How well the main methods do."""
    measure = "accuracy" if found["measure"] == "accuracy" else "mean score (of 100)"
    means = {name: score(m["accuracy"]["value"], found["measure"]) for name, m in found["methods"].items()}
    said = ", ".join(f"{shown(name)} {means[name]}" for name in (C2C, RECEIVER, SHARER, TEXT_TO_TEXT) if name in means)
    return f"{measure.capitalize()} on {found['num_items']:,} questions: {said}." if said else ""


def _number(compared: Compared, name: str, words: str) -> str:
    """A number that stands out (see `write_report`), what it is, and how certain."""
    difference = compared["difference"]
    value = f"{points(difference['value'])} points" + ("" if compared["significant"] else f", {NOT_SIGNIFICANT}")
    interval = f"95% interval {points(difference['low'])} to {points(difference['high'])}"
    return f"> **{value}** *{name}*: {words}\\\n> {interval}, {p_in_words(compared['p'])}"


def _scores(found: Findings, figures: Path) -> Section:
    measure, methods, guessing = found["measure"], found["methods"], found["guessing"]
    by_kind = {kind: {n: m for n, m in methods.items() if m["control"] is is_control} for kind, is_control in KINDS}
    unit = "accuracy" if measure == "accuracy" else "score (of 100)"
    caption = f"{unit} with 95% intervals on {found['num_items']:,} questions"
    tables = {
        f"{kind}: {caption}": pd.DataFrame([_score_row(name, m, measure, unit) for name, m in of_kind.items()])
        for kind, of_kind in by_kind.items()
        if of_kind
    }
    drawn = [
        Row(
            shown(name),
            m["accuracy"],
            f"{score(m['accuracy']['value'], measure)} {score_interval(m['accuracy'], measure)}",
            ACCENT if name == C2C else INK,
            hollow=m["control"],
        )
        for of_kind in by_kind.values()
        for name, m in of_kind.items()
    ]
    label = f"{unit}, %" if measure == "accuracy" else unit
    file = draw_forest(drawn, label, figures / "scores.png", guessing, "guessing")
    text = "" if guessing is None else f"Guessing would give {score(guessing, measure)}."
    return Section(unit.capitalize(), text, tables, {f"{unit.capitalize()} with 95% intervals; controls hollow": file})


def _score_row(name: str, method: MethodFound, measure: str, unit: str) -> dict[str, str]:
    return {
        "": shown(name),
        unit: score(method["accuracy"]["value"], measure),
        "95% interval": score_interval(method["accuracy"], measure),
        "unread": percent(method["unread"]),
        "truncated": percent(method["truncated"]),
        "what it is": method["description"] + (" (generic)" if method["generic"] else ""),
    }


def _comparisons(found: Findings, figures: Path) -> Section:
    rows, drawn = [], []
    is_better = "right" if found["measure"] == "accuracy" else "better"
    for name, comparison in found["comparisons"].items():
        numbers = points_with_interval(comparison["difference"])
        rows.append(
            {
                "C2C less": name,
                "difference in points [95% interval]": numbers,
                "p": p_value(comparison["p"]),
                "verdict": verdict(comparison, C2C, name),
                f"only C2C {is_better}": f"{comparison['only_c2c']:,}",
                f"only the other {is_better}": f"{comparison['only_other']:,}",
                "test": comparison["test"],
            }
        )
        colour = INK if comparison["significant"] else PALE
        hollow = found["methods"][name]["control"]
        drawn.append(Row(f"C2C − {name}", comparison["difference"], numbers, colour, hollow))
    file = draw_forest(drawn, "difference in points", figures / "differences.png", 0.0, "no difference")
    text = "Compared question by question. The p of a row is not corrected for the number of rows."
    caption = f"C2C less each other method, on {found['num_items']:,} questions"
    figure = "C2C less each other method, with 95% intervals; controls hollow, what is not significant grey"
    return Section("C2C against each of the others", text, {caption: pd.DataFrame(rows)}, {figure: file})


def _cost(found: Findings) -> Section:
    rows = [
        {
            "": shown(name),
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
        text = f"C2C takes {times[C2C] / times[TEXT_TO_TEXT]:.2f} times as long as {TEXT_TO_TEXT}.\n\n{text}"
    return Section("What an answer costs", text, {"Cost of one answer": pd.DataFrame(rows)})


def _setting(found: Findings) -> Section:
    prompt, mode = found["prompt"], found["answer_mode"]
    asked = [
        f"{found['num_items']:,} questions of {plain(found['benchmark'])}, "
        f"with the prompt {plain(prompt['name'])}, version {plain(prompt['version'])}.",
        f"The answer is {ANSWER_MODES[mode]}." if mode in ANSWER_MODES else f"Answer mode: {plain(mode)}.",
        f"Seed (whose cache the wrong question lends, order of shuffled choices, resampling): {found['seed']}.",
        *(f"Left out: {number:,} records ({plain(reason)})." for reason, number in found["dropped"].items() if number),
        *(f"Not asked: {plain(name)}, because {plain(reason)}." for name, reason in found["left_out"].items()),
    ]
    return Section("What was asked", "\n".join(f"- {line}" for line in asked))


def reading_guide(found: list[Findings]) -> list[Section]:
    """The words of a report, explained once for all its benchmarks, whose other methods are named too."""
    methods = {name: method for each in found for name, method in each["methods"].items() if name != C2C}
    known = {name: f"{_kind(m)}{m['description']}" for name, m in methods.items() if name not in GUIDE}
    return [
        Section("Words", tables={"What they mean": pd.DataFrame((GUIDE | known).items(), columns=["word", "meaning"])})
    ]


def _kind(method: MethodFound) -> str:
    if method["generic"]:
        return "generic control; "
    return "control, but not generic, for it knows the question as well as C2C does; " if method["control"] else ""
