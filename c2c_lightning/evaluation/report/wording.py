"""What a report says of one benchmark: headline, scores, comparisons, cost, and what was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from c2c_lightning.drawing.forest import ACCENT, INK, PALE, Row, draw_forest
from c2c_lightning.drawing.style import shown
from c2c_lightning.evaluation.report.findings import C2C, TEXT_TO_TEXT, Findings
from c2c_lightning.evaluation.report.formatting import (
    NOTHING,
    p_value,
    percent,
    plain,
    points_with_interval,
    score,
    score_interval,
    size,
    verdict,
)
from c2c_lightning.evaluation.report.headline import headline
from c2c_lightning.evaluation.report.section import Section

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
    written = [headline(found), _scores(found, figures)]
    if found["comparisons"]:
        written.append(_comparisons(found, figures))
    return [*written, _cost(found), _setting(found)]


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
        "*Unread* are the answers in which nothing could be read as an answer, and *truncated* those that reached the "
        "token limit: both count as they were graded, mostly as wrong."
    )
    if any(m["generic"] for m in methods.values()):
        text = (
            "A generic control knows nothing from the sharer about the question it answers; what C2C has above all of "
            f"them is question-specific. {text}"
        )
    return Section(unit.capitalize(), text, tables, {f"{unit.capitalize()} with 95% intervals; controls hollow": file})


def _score_table(rows: dict[str, dict[str, Any]], measure: str, unit: str) -> pd.DataFrame:
    table = [
        {
            "": shown(name),
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
    return Row(shown(name), estimate, numbers, ACCENT if name == C2C else INK, hollow=method["control"])


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
                f"only C2C {is_better}": f"{comparison['only_c2c']:,}",
                f"only the other {is_better}": f"{comparison['only_other']:,}",
                "test": comparison["test"],
            }
        )
        colour = INK if comparison["significant"] else PALE
        numbers = points_with_interval(comparison["difference"])
        hollow = found["methods"][name]["control"]
        drawn.append(Row(f"C2C − {name}", comparison["difference"], numbers, colour, hollow))
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
        share = times[C2C] / times[TEXT_TO_TEXT]
        text = f"C2C takes {share:.2f} times as long as {TEXT_TO_TEXT}.\n\n{text}"
    return Section("What an answer costs", text, {"Cost of one answer": pd.DataFrame(rows)})


def _setting(found: Findings) -> Section:
    prompt, mode = found["prompt"], found["answer_mode"]
    asked = [
        f"{found['num_items']:,} questions of {plain(found['benchmark'])}, "
        f"with the prompt {plain(prompt['name'])}, version {plain(prompt['version'])}.",
        f"The answer is {ANSWER_MODES[mode]}." if mode in ANSWER_MODES else f"Answer mode: {plain(mode)}.",
        f"Seed (whose cache the wrong question lends, order of shuffled choices, resampling): {found['seed']}.",
    ]
    asked += [
        f"Left out: {number:,} records ({plain(reason)})." for reason, number in found["dropped"].items() if number
    ]
    asked += [f"Not asked: {plain(name)}, because {plain(reason)}." for name, reason in found["left_out"].items()]
    return Section("What was asked", "\n".join(f"- {line}" for line in asked))
