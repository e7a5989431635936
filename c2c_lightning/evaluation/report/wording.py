"""What a report says of one benchmark: the verdict, scores, comparisons, cost, and what was asked.

A difference that is not significant is never called anything else. The sentences are in templates/words.yaml.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from c2c_lightning.drawing import ACCENT, INK, PALE, Estimate, Row, draw_forest, shown
from c2c_lightning.evaluation.report import page as written
from c2c_lightning.evaluation.report.findings import C2C, MAIN, RECEIVER, TEXT_TO_TEXT, WRONG_QUESTION, Findings
from c2c_lightning.evaluation.report.page import NOTHING, Section, plain, points_with_interval, score
from c2c_lightning.evaluation.report.statistics import Comparison, Gain
from c2c_lightning.files import read_yaml

FEW = 50  # questions


@cache
def words() -> dict[str, Any]:
    """The sentences of a report."""
    return read_yaml(Path(__file__).with_name("templates") / "words.yaml", dict[str, Any], "words of a report")


def sections(found: Findings, figures: Path) -> list[Section]:
    """What was found on one benchmark; `figures` is the folder for its figures."""
    compared = [_comparisons(found, figures)] if found.comparisons else []
    return [headline(found), _scores(found, figures), *compared, _cost(found), _setting(found)]


def headline(found: Findings) -> Section:
    """What C2C gained, and what of it came from the sharer's knowledge of the question."""
    gain, raw = gain_as_told(found), found.raw_gain
    verdict = words()["verdicts"][_verdict(found)]
    text, numbers = verdict["text"], []
    if gain:
        over = f"{plain(gain.over)}, the best of the controls"
        if gain.over == RECEIVER:
            over = "the receiver alone, which no control exceeds"
        text = text.format(gain=points_with_interval(gain.difference), over=over, p=written.p_in_words(gain.p))
        numbers.append(_number(gain, "question-specific gain", f"C2C less {over}"))
    if raw:
        numbers.append(_number(raw, "raw gain", "C2C less the receiver alone"))
    if found.retention_trained:
        meaning = "the same of what it gains by reading the text itself behind a prefix that was trained likewise"
        numbers.insert(0, _retention(found.retention_trained, "retention against the trained skyline", meaning))
    if found.retention:
        meaning = "of what the receiver gains by reading the text itself, it gains by what the sharer hands over"
        numbers.insert(0, _retention(found.retention, "retention", meaning))
    caution = [words()["caution"].format(few=FEW)] if found.num_items < FEW else []
    return Section(verdict["title"], "\n\n".join([*numbers, text, *caution, _levels(found)]))


def _retention(retained: Estimate, name: str, meaning: str) -> str:
    value, low, high = (f"{100 * number:.0f}%" for number in asdict(retained).values())
    return f"> **{value}** *{name}*: {meaning}\\\n> 95% interval {low} to {high}"


def gain_as_told(found: Findings) -> Gain | None:
    """The question-specific gain; a loss with the certainty of the one comparison that it is."""
    gain = found.question_specific_gain
    # That C2C is above every control is never likely where it is below one: that p says nothing of the loss.
    return gain if gain is None or gain.difference.value > 0 else replace(gain, **vars(found.comparisons[gain.over]))


def _verdict(found: Findings) -> str:
    """Which of the verdicts holds."""
    gain, raw = gain_as_told(found), found.raw_gain
    if C2C not in found.methods:
        return "no C2C"
    if gain is None and raw is None:
        return "nothing to compare with"
    if gain is None:
        return "unverified" if raw.significant and raw.difference.value > 0 else "no raw gain"
    if not gain.significant:
        return "no gain"
    if gain.difference.value <= 0:
        return "loss"
    return "gain" if WRONG_QUESTION in found.methods else "gain, wrong question not asked"


def _levels(found: Findings) -> str:
    """How well the main methods do."""
    measure = "Accuracy" if found.measure == "accuracy" else "Mean score (of 100)"
    means = {name: score(m.accuracy.value, found.measure) for name, m in found.methods.items()}
    said = ", ".join(f"{shown(name)} {means[name]}" for name in dict.fromkeys((C2C, *MAIN)) if name in means)
    return f"{measure} on {found.num_items:,} questions: {said}." if said else ""


def _number(compared: Comparison, name: str, meaning: str) -> str:
    """A number that stands out (see `write_report`), what it is, and how certain."""
    value, low, high = (written.points(number) for number in asdict(compared.difference).values())
    interval = f"95% interval {low} to {high}, {written.p_in_words(compared.p)}"
    return f"> **{value} points{written.doubt(compared)}** *{name}*: {meaning}\\\n> {interval}"


def _scores(found: Findings, figures: Path) -> Section:
    measure, guessing = found.measure, found.guessing
    unit = "accuracy" if measure == "accuracy" else "score (of 100)"
    rows: dict[str, list[dict[str, str]]] = {"Methods": [], "Controls": []}
    drawn = []
    for name, m in sorted(found.methods.items(), key=lambda item: item[1].control):
        row = {
            "": shown(name),
            unit: score(m.accuracy.value, measure),
            "95% interval": written.score_interval(m.accuracy, measure),
            "unread": written.percent(m.unread),
            "truncated": written.percent(m.truncated),
            "close": f"{m.close:,}",
            **({name: f"{value:.3f}" for name, value in m.metrics.items()} if len(m.metrics) > 1 else {}),
            "what it is": m.description + (" (generic)" if m.generic else ""),
        }
        rows["Controls" if m.control else "Methods"].append(row)
        numbers, colour = written.with_interval(m.accuracy, measure), ACCENT if name == C2C else INK
        drawn.append(Row(shown(name), m.accuracy, numbers, colour, hollow=m.control))
    caption = f"{unit} with 95% intervals on {found.num_items:,} questions"
    tables = {f"{kind}: {caption}": pd.DataFrame(of_kind) for kind, of_kind in rows.items() if of_kind}
    label = f"{unit}, %" if measure == "accuracy" else unit
    file = draw_forest(drawn, label, figures / "scores.png", guessing, "guessing")
    text = "" if guessing is None else f"Guessing would give {score(guessing, measure)}."
    return Section(unit.capitalize(), text, tables, {f"{unit.capitalize()} with 95% intervals; controls hollow": file})


def _comparisons(found: Findings, figures: Path) -> Section:
    rows, drawn = [], []
    better = "right" if found.measure == "accuracy" else "better"
    for name, comparison in found.comparisons.items():
        cells = written.compared(comparison, C2C, name, f"only C2C {better}", f"only the other {better}")
        rows.append({"C2C less": name} | cells)
        numbers, colour = points_with_interval(comparison.difference), INK if comparison.significant else PALE
        drawn.append(Row(f"C2C − {name}", comparison.difference, numbers, colour, found.methods[name].control))
    file = draw_forest(drawn, "difference in points", figures / "differences.png", 0.0, "no difference")
    text = "Compared question by question. The p of a row is not corrected for the number of rows."
    caption = f"C2C less each other method, on {found.num_items:,} questions"
    figure = "C2C less each other method, with 95% intervals; controls hollow, what is not significant grey"
    return Section("C2C against each of the others", text, {caption: pd.DataFrame(rows)}, {figure: file})


def _cost(found: Findings) -> Section:
    rows = [
        {
            "": shown(name),
            "prefill, ms": f"{m.prefill_ms:,.1f}",
            "decoding, ms": f"{m.decode_ms:,.1f}",
            "together, ms": f"{m.prefill_ms + m.decode_ms:,.1f}",
            "tokens by receiver": f"{m.receiver_tokens:,.1f}",
            "tokens by sharer": f"{m.sharer_tokens:,.1f}",
            "handed over": written.size(m.handed_over_bytes) if m.handed_over_bytes else NOTHING,
        }
        for name, m in found.methods.items()
    ]
    text = words()["cost"]
    times = {name: m.prefill_ms + m.decode_ms for name, m in found.methods.items()}
    if times.get(TEXT_TO_TEXT) and C2C in times:
        text = f"C2C takes {times[C2C] / times[TEXT_TO_TEXT]:.2f} times as long as {TEXT_TO_TEXT}.\n\n{text}"
    return Section("What an answer costs", text, {"Cost of one answer": pd.DataFrame(rows)})


def _setting(found: Findings) -> Section:
    mode, modes = found.answer_mode, words()["answer_modes"]
    asked = [
        f"{found.num_items:,} questions of {plain(found.benchmark)}, "
        f"with the prompt {plain(found.prompt.name)}, version {found.prompt.version}.",
        f"The answer is {modes[mode]}." if mode in modes else f"Answer mode: {plain(mode)}.",
        f"Seed (whose cache the wrong question lends, order of shuffled choices, resampling): {found.seed}.",
        *(f"Left out: {number:,} records ({plain(reason)})." for reason, number in found.dropped.items() if number),
        *([f"Merged: turns of {found.merged:,} questions, which a chat template refused."] if found.merged else []),
        *(f"Not asked: {plain(name)}, because {plain(reason)}." for name, reason in found.left_out.items()),
    ]
    return Section("What was asked", "\n".join(f"- {line}" for line in asked))


def reading_guide(found: list[Findings]) -> list[Section]:
    """The words of a report, explained once for all its benchmarks, whose other methods are named too."""
    guide = words()["guide"]
    methods = {name: method for each in found for name, method in each.methods.items() if name != C2C}
    other = "control, but not generic, for it knows the question as well as C2C does; "
    kinds = {name: "generic control; " if m.generic else other if m.control else "" for name, m in methods.items()}
    known = {name: kinds[name] + m.description for name, m in methods.items() if name not in guide}
    table = pd.DataFrame((guide | known).items(), columns=["word", "meaning"])
    return [Section("Words", tables={"What they mean": table})]


def show(found: dict[str, Findings], folder: Path) -> None:
    """Prints the scores, the gain, and where the report is."""
    # Names may hold brackets, which are no markup of rich's.
    console = Console(markup=False, soft_wrap=True)
    for name, of in found.items():
        table = Table("method", title=f"{name}: {of.num_items:,} questions")
        for column in (of.measure, "95% interval"):
            table.add_column(column, justify="right")
        for method, one in of.methods.items():
            value, interval = score(one.accuracy.value, of.measure), written.score_interval(one.accuracy, of.measure)
            table.add_row(shown(method), value, interval)
        console.print(table)
        for method, reason in of.left_out.items():
            console.print(f"not asked: {method}, because {reason}")
        gain = gain_as_told(of)
        if gain:
            value = points_with_interval(gain.difference)
            console.print(f"question-specific gain: {value} points, over {gain.over}{written.doubt(gain)}")
    console.print(f"report: {folder / 'report.html'}")
