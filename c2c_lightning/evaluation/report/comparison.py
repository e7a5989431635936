"""Lays several evaluations side by side: what each gained, in what they differ, whether they may be compared.

An evaluation that an older grader graded is graded again first, without the models that gave the answers.
"""

from __future__ import annotations

import glob
import itertools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jsonargparse import ArgumentParser

from c2c_lightning.drawing import INK, PALE, Row, draw_forest, shown
from c2c_lightning.errors import UserError, first_line
from c2c_lightning.evaluation.asking.answers import AnswerFile, questions_digest
from c2c_lightning.evaluation.asking.controls import CONTROLS
from c2c_lightning.evaluation.asking.methods import Answering, Method
from c2c_lightning.evaluation.asking.module import METHODS, QUESTIONS, TOO_LONG
from c2c_lightning.evaluation.benchmarks import Benchmark, grading
from c2c_lightning.evaluation.report import page as written
from c2c_lightning.evaluation.report.findings import C2C, MAIN, RECEIVER, Findings, Results, collect, findings
from c2c_lightning.evaluation.report.page import NOTHING, Section, plain, write_report
from c2c_lightning.evaluation.report.statistics import compare
from c2c_lightning.evaluation.report.wording import reading_guide
from c2c_lightning.files import json_text, read_bytes, read_json, read_yaml, write_whole
from c2c_lightning.runs import CONFIG_FILE, RESULTS_FILE, held, make_folder

log = logging.getLogger(__name__)


@dataclass
class FinishedEvaluation:
    """What an evaluation has left behind."""

    label: str  # what sets its folder apart from the others'
    folder: Path
    facts: dict[str, str]  # its settings
    benchmarks: dict[str, Findings]


def compare_runs(runs: list[str] | str, output: str = "comparison") -> None:
    """Lays several evaluations side by side, as comparison.html and comparison.md.

    The first evaluation is the baseline, with which the C2C of the others is compared question by question
    where the same questions were asked.

    Args:
        runs: evaluation folders, folders of training runs, or patterns such as 'runs/*', with commas between
            them. A training run stands for all of its evaluations.
        output: folder to write to.

    Raises:
        UserError: one of them holds no finished evaluation.
    """
    if isinstance(runs, str):
        runs = [runs] if os.path.exists(runs) else runs.split(",")
    found = load_evaluations(runs)
    folder = Path(output)
    make_folder(folder, "output")
    parts = {}
    for name in dict.fromkeys(name for each in found for name in each.benchmarks):
        asked = [each for each in found if name in each.benchmarks]
        parts[name] = [_side_by_side(name, asked, folder), *([_paired(name, asked)] if len(asked) > 1 else [])]
    common, differing = _settings(found)
    parts["Settings"] = [differing]
    parts["How to read this"] = reading_guide([findings for each in found for findings in each.benchmarks.values()])
    file = write_report(folder, f"{len(found)} evaluations side by side", common, parts, "comparison")
    print(f"comparison: {file}")


def load_evaluations(given: Sequence[str]) -> list[FinishedEvaluation]:
    """The evaluations in folders of evaluations, of training runs, or that patterns match; each once.

    Raises:
        UserError: names everything that holds no finished evaluation, or the first of its files that is damaged.
    """
    folders: dict[Path, None] = {}
    problems = []
    for name in given:
        # A folder's own name may hold brackets; only what is no folder is a pattern.
        matches = [Path(name)] if os.path.exists(name) else sorted(map(Path, glob.glob(name)))
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
    found = []
    for folder, label in zip(folders, _labels(list(folders))):
        remedy = "It may be of another version: evaluate again, the answers are kept."
        results = up_to_date(folder, read_json(folder / RESULTS_FILE, Results, "runs:", remedy))
        found.append(FinishedEvaluation(label, folder, results.facts, results.benchmarks))
    return found


def _evaluations(folder: Path) -> list[Path]:
    """The folder itself if it is an evaluation's, otherwise the evaluations of a training run."""
    if (folder / RESULTS_FILE).is_file():
        return [folder]
    return sorted(file.parent for file in folder.glob(f"evaluation-*/{RESULTS_FILE}"))


def _labels(folders: Sequence[Path]) -> list[str]:
    """What sets the folders apart: the training run's if each is the only evaluation of one, otherwise the path."""
    runs = [folder.parent if folder.name.startswith("evaluation-") else folder for folder in folders]
    told = runs if len(set(runs)) == len(runs) else list(folders)
    common = Path(os.path.commonpath([folder.parent for folder in told]))
    return [folder.relative_to(common).as_posix() for folder in told]


def _side_by_side(name: str, evaluations: Sequence[FinishedEvaluation], folder: Path) -> Section:
    """Each evaluation by itself, as table and figure, with a warning where they are not comparable."""
    found = {each.label: each.benchmarks[name] for each in evaluations}
    measure = "accuracy" if all(each.measure == "accuracy" for each in found.values()) else "score"
    gains, levels, drawn = [], [], []
    for label, each in found.items():
        gain, raw = each.question_specific_gain, each.raw_gain
        means = {method: written.score(of.accuracy.value, measure) for method, of in each.methods.items()}
        gained = {"evaluation": label, "question-specific gain": None, "over": None, "verdict": "unverified"}
        level = {"evaluation": label, **{shown(method): means.get(method) for method in MAIN}, "best control": None}
        if gain:
            difference = written.points_with_interval(gain.difference)
            gained |= {
                "question-specific gain": difference,
                "over": gain.over,
                "verdict": written.verdict(gain, C2C, gain.over),
            }
            level["best control"] = f"{means[gain.over]} {gain.over}"
            drawn.append(Row(label, gain.difference, difference, INK if gain.significant else PALE))
        gained["raw gain"] = written.points_with_interval(raw.difference) if raw else None
        gained["verdict on the raw gain"] = written.verdict(raw, C2C, RECEIVER) if raw else None
        gains.append(gained)
        levels.append(level)
    tables = {
        "Gains in points [95% interval]": pd.DataFrame(gains),
        "Accuracy" if measure == "accuracy" else "Score (of 100)": pd.DataFrame(levels),
    }
    figures = {}
    if drawn:
        caption = "Question-specific gain of each evaluation, with 95% intervals; what is not significant grey"
        file = folder / "figures" / name / "gains.png"
        figures[caption] = draw_forest(drawn, "question-specific gain in points", file, 0.0, "no gain")
    text = "Where the verdict is *not significant*, no gain was found, however large the number."
    text = "\n\n".join([*_not_comparable(name, evaluations), text])
    return Section("Question-specific gain of each", text, tables, figures)


def _not_comparable(name: str, evaluations: Sequence[FinishedEvaluation]) -> list[str]:
    """A warning for everything in which the same benchmark was asked otherwise."""
    asked = {
        "questions": lambda found: f"{found.num_items:,} questions ({found.items})",
        "prompts": lambda found: f"{found.prompt.name}, version {found.prompt.version}",
        "answer modes": lambda found: found.answer_mode,
        "seeds": lambda found: f"seed {found.seed}",
    }
    warnings = []
    for what, of in asked.items():
        groups: dict[str, list[str]] = {}
        for each in evaluations:
            groups.setdefault(of(each.benchmarks[name]), []).append(each.label)
        if len(groups) > 1:
            listed = "; ".join(f"{plain(value)}: {plain(', '.join(labels))}" for value, labels in groups.items())
            warnings.append(f"**Not comparable: the {what} differ.** {listed}.")
    return warnings


def _paired(name: str, evaluations: Sequence[FinishedEvaluation]) -> Section:
    """C2C of the first evaluation and of each other one, question by question."""
    first, *others = evaluations
    own, *others_answers = (AnswerFile(each.folder, name, C2C).read() for each in evaluations)
    rows, unpaired = [], []
    for other, answers in zip(others, others_answers):
        same_items = other.benchmarks[name].items == first.benchmarks[name].items
        if not own or own.keys() != answers.keys() or not same_items:
            unpaired.append(other.label)
            continue
        scores = [[of[id].score for id in own] for of in (answers, own)]
        comparison = compare(*scores, seed=first.benchmarks[name].seed)
        columns = "only the other better", "only the baseline better"
        rows.append({"C2C of": other.label} | written.compared(comparison, other.label, first.label, *columns))
    text = f"The baseline is {plain(first.label)}, the one that was named first."
    if unpaired:
        text += (
            f" Not compared with it: {plain(', '.join(unpaired))}. Answers to the very same questions are needed from "
            f"both, in answers/{plain(name)}/{C2C}.jsonl."
        )
    caption = f"C2C of each evaluation less C2C of {first.label}, on the same {len(own):,} questions"
    return Section("C2C against the first", text, {caption: pd.DataFrame(rows)} if rows else {})


def _settings(evaluations: Sequence[FinishedEvaluation]) -> tuple[dict[str, str], Section]:
    """The settings that all evaluations have in common, and those in which they differ."""
    table = pd.DataFrame({each.label: each.facts for each in evaluations}).fillna(NOTHING)
    # In the order of the first evaluation that has them; pandas would sort them.
    table = table.loc[[*dict.fromkeys(itertools.chain.from_iterable(each.facts for each in evaluations))]]
    differs = table.nunique(axis=1) > 1
    common = table[~differs].iloc[:, 0].to_dict()
    if not differs.any():
        return common, Section("Settings in which they differ", "There are none.")
    rows = table[differs].reset_index(names="setting")
    return common, Section("Settings in which they differ", tables={"What differs": rows})


def up_to_date(folder: Path, results: Results) -> Results:
    """The results of an evaluation as today's graders see them; its results.json and answers are brought up to date.

    Where it cannot be graded again, as when its questions have moved, a warning says so and the results stay.
    """
    if results.grader == grading.version():
        return results
    try:
        with held(folder, "evaluation"):
            graded = _grade(folder, results.benchmarks)
            for name, found in graded.items():
                found.merged = results.benchmarks[name].merged  # which only the models can tell
            now = replace(results, benchmarks=graded, grader=grading.version())
            write_whole(folder / RESULTS_FILE, json_text(now))
    except UserError as error:
        log.warning("%s was graded by an older grader, and cannot be graded again: %s", folder, error)
        return results
    log.warning("%s was graded by an older grader: its answers are graded again", folder)
    return now


def _grade(folder: Path, before: dict[str, Findings]) -> dict[str, Findings]:
    config = read_yaml(folder / CONFIG_FILE, dict[str, Any], "runs:", "Evaluate again.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--benchmarks", type=list[Benchmark])
    for key in ("methods", "controls"):
        parser.add_argument(f"--{key}", type=list[Method] | None)
    named = {key: config["model"].get(key) for key in ("methods", "controls")}
    try:
        made = parser.instantiate_classes(parser.parse_object({**named, "benchmarks": config["data"]["benchmarks"]}))
    except Exception as error:  # jsonargparse has many of its own
        raise UserError(f"{folder / CONFIG_FILE}: {first_line(error)}") from error
    methods = [make() for make in METHODS] if made.methods is None else made.methods
    methods += [make() for make in CONTROLS] if made.controls is None else made.controls
    return {
        each.name: _findings(folder, each, methods, before[each.name], config["data"]["seed"])
        for each in made.benchmarks
        if each.name in before
    }


def _findings(folder: Path, benchmark: Benchmark, methods: list[Method], before: Findings, seed: int) -> Findings:
    methods = [method for method in methods if method.name in before.methods or method.name in before.left_out]
    unknown = before.methods.keys() - {method.name for method in methods}
    if unknown:
        raise UserError(f"{min(unknown)} was asked for an analysis, which needs the models: evaluate again.")
    asked = [method for method in methods if isinstance(method, Answering) and not method.why_not(benchmark)]
    kept = {method.name: method.resume(folder, benchmark, seed) for method in asked}
    answered = set.intersection(*map(set, kept.values()))
    benchmark.leave_out({item.id for item in benchmark.items()} - answered, TOO_LONG)
    digest = read_bytes(folder / QUESTIONS.format(benchmark.name), "digest of the questions").strip()
    if digest != questions_digest(benchmark).encode():
        raise UserError(f"{benchmark.name} has other questions, prompts or exemplars than were asked.")
    return findings(collect(benchmark, methods, kept, seed))
