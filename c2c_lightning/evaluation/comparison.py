"""Lays several evaluations side by side: what each gained, in what they differ, whether they may be compared."""

from __future__ import annotations

import glob
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.answers import Answer, AnswerFile
from c2c_lightning.evaluation.findings import C2C, RECEIVER, TEXT_TO_TEXT, Findings
from c2c_lightning.evaluation.forest import INK, PALE, Row, draw_forest
from c2c_lightning.evaluation.formatting import (
    NOTHING,
    p_value,
    plain,
    points_with_interval,
    score,
    verdict,
)
from c2c_lightning.evaluation.reading_guide import reading_guide
from c2c_lightning.evaluation.report import write_report
from c2c_lightning.evaluation.section import Section
from c2c_lightning.evaluation.statistics import compare

RESULTS_FILE = "results.json"
KEYS = {"title", "facts", "benchmarks"}
SHOWN = (RECEIVER, "sharer", TEXT_TO_TEXT, C2C)


@dataclass
class Run:
    """A finished evaluation.

    Attributes:
        label: what sets its folder apart from the others'.
        folder: where it lies.
        facts: its settings.
        benchmarks: its findings, by benchmark.
    """

    label: str
    folder: Path
    facts: dict[str, str]
    benchmarks: dict[str, Findings]

    def answers(self, benchmark: str) -> dict[str, Answer]:
        """C2C's answers by question id; empty if they are not kept."""
        return AnswerFile(self.folder / "answers" / benchmark / f"{C2C}.jsonl").read()


def compare_runs(runs: list[str] | str, output: str = "comparison") -> None:
    """Lays several evaluations side by side, as comparison.html and comparison.md.

    The first run is the baseline, with which the C2C of the others is compared question by question where
    the same questions were asked.

    Args:
        runs: evaluation folders, folders of training runs, or patterns such as 'runs/*', with commas between
            them. A training run stands for all of its evaluations.
        output: folder to write to.

    Raises:
        UserError: one of them holds no finished evaluation.
    """
    found = load_runs(runs.split(",") if isinstance(runs, str) else runs)
    folder = Path(output)
    names = list(dict.fromkeys(name for run in found for name in run.benchmarks))
    parts = {name: _benchmark(name, [run for run in found if name in run.benchmarks], folder) for name in names}
    common, differing = _settings(found)
    parts["Settings"] = [differing]
    parts["How to read this"] = reading_guide([each for run in found for each in run.benchmarks.values()])
    file = write_report(folder, f"{len(found)} evaluations side by side", common, parts, "comparison")
    print(f"comparison: {file}")


def load_runs(given: Sequence[str]) -> list[Run]:
    """The evaluations in folders of evaluations, of training runs, or that patterns match; each once.

    Raises:
        UserError: names everything that holds no finished evaluation.
    """
    folders: dict[Path, None] = {}
    problems = []
    for name in given:
        matches = sorted(Path(match) for match in glob.glob(name)) if glob.has_magic(name) else [Path(name)]
        inside = [folder for match in matches for folder in _evaluations(match)]
        folders |= dict.fromkeys(folder.resolve() for folder in inside)
        if not inside:
            reason = f"no {RESULTS_FILE} in it or its evaluation-*" if any(m.is_dir() for m in matches) else "no folder"
            problems.append(f"{name} ({reason})")
    if problems or not folders:
        raise UserError(
            f"runs: no finished evaluation in {', '.join(problems) or 'an empty list'}. Name folders that "
            "`python -m c2c_lightning test` has written, or run it to its end: "
            "python -m c2c_lightning test --config conf/eval/nano.yaml --model.fuser FOLDER"
        )
    return [_load(folder, label) for folder, label in zip(folders, _labels(list(folders)))]


def _evaluations(folder: Path) -> list[Path]:
    """The folder itself if it is an evaluation's, otherwise the evaluations of a training run."""
    if (folder / RESULTS_FILE).is_file():
        return [folder]
    return sorted(file.parent for file in folder.glob(f"evaluation-*/{RESULTS_FILE}"))


def _labels(folders: Sequence[Path]) -> list[str]:
    """What sets the folders apart: the run's folder if each is the only evaluation of one, otherwise the path."""
    runs = [folder.parent if folder.name.startswith("evaluation-") else folder for folder in folders]
    shown = runs if len(set(runs)) == len(runs) else list(folders)
    common = Path(os.path.commonpath([folder.parent for folder in shown]))
    return [folder.relative_to(common).as_posix() for folder in shown]


def _load(folder: Path, label: str) -> Run:
    file = folder / RESULTS_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"runs: {file} is no JSON ({error}): evaluate again, the answers are kept.") from error
    if not isinstance(content, dict) or not content.keys() >= KEYS:
        raise UserError(f"runs: {file} lacks {', '.join(sorted(KEYS))}: evaluate again, the answers are kept.")
    return Run(label, folder, content["facts"], content["benchmarks"])


def _benchmark(name: str, runs: Sequence[Run], folder: Path) -> list[Section]:
    """What the runs that asked a benchmark found on it."""
    side_by_side = _side_by_side(name, runs, folder)
    return [side_by_side, _paired(name, runs)] if len(runs) > 1 else [side_by_side]


def _side_by_side(name: str, runs: Sequence[Run], folder: Path) -> Section:
    """Each run by itself, with a warning where they are not comparable."""
    found = {run.label: run.benchmarks[name] for run in runs}
    text = "Where the verdict is *not significant*, no gain was found, however large the number."
    gains = {label: each["question_specific_gain"] for label, each in found.items() if each["question_specific_gain"]}
    figures = {}
    if gains:
        caption = "Question-specific gain of each evaluation, with 95% intervals; what is not significant grey"
        file = folder / "figures" / name / "gains.png"
        drawn = [_drawn(label, gain) for label, gain in gains.items()]
        figures[caption] = draw_forest(drawn, "question-specific gain in points", file, 0.0, "no gain")
    return Section(
        "Question-specific gain of each",
        "\n\n".join([*_not_comparable(name, runs), text]),
        {"Each evaluation by itself": pd.DataFrame([_row(label, each) for label, each in found.items()])},
        figures,
    )


def _drawn(label: str, gain: dict[str, Any]) -> Row:
    numbers = points_with_interval(gain["difference"])
    return Row(label, gain["difference"], numbers, INK if gain["significant"] else PALE)


def _row(label: str, found: Findings) -> dict[str, str]:
    gain, raw = found["question_specific_gain"], found["raw_gain"]
    over = gain["over"] if gain else None
    accuracies = {
        name: score(found["methods"][name]["accuracy"]["value"], found["measure"])
        if name in found["methods"]
        else NOTHING
        for name in (*SHOWN, *filter(None, [over]))
    }
    return {
        "evaluation": label,
        "question-specific gain": points_with_interval(gain["difference"]) if gain else NOTHING,
        "verdict": verdict(gain, C2C, over) if gain else "unverified",
        "raw gain": points_with_interval(raw["difference"]) if raw else NOTHING,
        "verdict on the raw gain": verdict(raw, C2C, RECEIVER) if raw else NOTHING,
        **{name: accuracies[name] for name in SHOWN},
        "best control": f"{accuracies[over]} {over}" if over else NOTHING,
    }


def _not_comparable(name: str, runs: Sequence[Run]) -> list[str]:
    """A warning for everything in which the same benchmark was asked otherwise."""
    asked = {
        "questions": lambda found: f"{found['num_items']:,} questions ({found['items']})",
        "prompts": lambda found: f"{found['prompt']['name']}, version {found['prompt']['version']}",
        "answer modes": lambda found: str(found["answer_mode"]),
        "seeds": lambda found: f"seed {found['seed']}",
    }
    warnings = []
    for what, of in asked.items():
        groups: dict[str, list[str]] = {}
        for run in runs:
            groups.setdefault(of(run.benchmarks[name]), []).append(run.label)
        if len(groups) > 1:
            listed = "; ".join(f"{plain(value)}: {plain(', '.join(labels))}" for value, labels in groups.items())
            warnings.append(f"**Not comparable: the {what} differ.** {listed}.")
    return warnings


def _paired(name: str, runs: Sequence[Run]) -> Section:
    """C2C of the first run and of each other one, question by question."""
    first, *others = runs
    own = first.answers(name)
    rows, unpaired = [], []
    for other in others:
        answers = other.answers(name)
        same_items = other.benchmarks[name]["items"] == first.benchmarks[name]["items"]
        if not own or own.keys() != answers.keys() or not same_items:
            unpaired.append(other.label)
            continue
        scores = [[of[id].score for id in own] for of in (answers, own)]
        comparison = compare(*scores, seed=first.benchmarks[name]["seed"])
        numbers = asdict(comparison) | {"significant": comparison.significant}
        rows.append(
            {
                "C2C of": other.label,
                "difference in points [95% interval]": points_with_interval(numbers["difference"]),
                "p": p_value(comparison.p),
                "verdict": verdict(numbers, other.label, first.label),
                "only the other better": f"{comparison.only_first:,}",
                "only the baseline better": f"{comparison.only_second:,}",
                "test": comparison.test,
            }
        )
    text = f"The baseline is {plain(first.label)}, the one that was named first."
    if unpaired:
        text += (
            f" Not compared with it: {plain(', '.join(unpaired))}. Answers to the very same questions are needed from "
            f"both, in answers/{plain(name)}/{C2C}.jsonl."
        )
    caption = f"C2C of each evaluation less C2C of {first.label}, on the same {len(own):,} questions"
    return Section("C2C against the first", text, {caption: pd.DataFrame(rows)} if rows else {})


def _settings(runs: Sequence[Run]) -> tuple[dict[str, str], Section]:
    """The facts that all runs have in common, and those in which they differ."""
    names = dict.fromkeys(itertools.chain.from_iterable(run.facts for run in runs))
    values = {name: [run.facts.get(name, NOTHING) for run in runs] for name in names}
    common = {name: given[0] for name, given in values.items() if len(set(given)) == 1}
    rows = [
        {"setting": name} | {run.label: value for run, value in zip(runs, given)}
        for name, given in values.items()
        if name not in common
    ]
    if not rows:
        return common, Section("Settings in which they differ", "There are none.")
    return common, Section("Settings in which they differ", tables={"What differs": pd.DataFrame(rows)})
