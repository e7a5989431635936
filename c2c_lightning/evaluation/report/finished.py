"""Finished evaluations, found in folders and read again."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.asking.answers import Answer, answer_file
from c2c_lightning.evaluation.report.findings import C2C, FINDINGS, Findings
from c2c_lightning.runs import RESULTS_FILE

KEYS = {"title", "facts", "benchmarks"}


@dataclass
class FinishedEvaluation:
    """What an evaluation has left behind.

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
        return answer_file(self.folder, benchmark, C2C).read()


def load_evaluations(given: Sequence[str]) -> list[FinishedEvaluation]:
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
    """What sets the folders apart: the training run's if each is the only evaluation of one, otherwise the path."""
    runs = [folder.parent if folder.name.startswith("evaluation-") else folder for folder in folders]
    told = runs if len(set(runs)) == len(runs) else list(folders)
    common = Path(os.path.commonpath([folder.parent for folder in told]))
    return [folder.relative_to(common).as_posix() for folder in told]


def _load(folder: Path, label: str) -> FinishedEvaluation:
    file = folder / RESULTS_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"runs: {file} is no JSON ({error}): evaluate again, the answers are kept.") from error
    if not isinstance(content, dict) or not content.keys() >= KEYS:
        raise UserError(f"runs: {file} lacks {', '.join(sorted(KEYS))}: evaluate again, the answers are kept.")
    facts, benchmarks = content["facts"], content["benchmarks"]
    whole = isinstance(facts, dict) and isinstance(benchmarks, dict)
    if not whole or any(not isinstance(found, dict) or not found.keys() >= FINDINGS for found in benchmarks.values()):
        raise UserError(f"runs: {file} is damaged, or of another version: evaluate again, the answers are kept.")
    return FinishedEvaluation(label, folder, content["facts"], content["benchmarks"])
