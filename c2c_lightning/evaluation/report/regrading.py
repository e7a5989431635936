"""Grades the kept answers of a finished evaluation again, without the models that gave them."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from c2c_lightning.errors import UserError, first_line
from c2c_lightning.evaluation.asking.answers import AnswerFile
from c2c_lightning.evaluation.asking.controls import CONTROLS
from c2c_lightning.evaluation.asking.methods import Answering, Method
from c2c_lightning.evaluation.asking.module import METHODS, QUESTIONS, TOO_LONG
from c2c_lightning.evaluation.asking.settings import questions_digest
from c2c_lightning.evaluation.benchmarks import Benchmark, grading
from c2c_lightning.evaluation.report.findings import Findings, Results, collect, findings
from c2c_lightning.files import json_text, read_bytes, read_yaml, write_whole
from c2c_lightning.runs import CONFIG_FILE, RESULTS_FILE, held

log = logging.getLogger(__name__)


def up_to_date(folder: Path, results: Results) -> Results:
    """The results of an evaluation as today's graders see them; its results.json and answers are brought up to date.

    Where it cannot be graded again, as when its questions have moved, a warning says so and the results stay.
    """
    if results.grader == grading.version():
        return results
    try:
        with held(folder, "evaluation"):
            graded = _grade(folder)
            for name in graded.keys() & results.benchmarks.keys():  # which only the models can tell
                graded[name].merged = results.benchmarks[name].merged
            now = replace(results, benchmarks=graded, grader=grading.version())
            write_whole(folder / RESULTS_FILE, json_text(now))
    except UserError as error:
        log.warning("%s was graded by an older grader, and cannot be graded again: %s", folder, error)
        return results
    log.warning("%s was graded by an older grader: its answers are graded again", folder)
    return now


def _grade(folder: Path) -> dict[str, Findings]:
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
    return {each.name: _findings(folder, each, methods, config["data"]["seed"]) for each in made.benchmarks}


def _findings(folder: Path, benchmark: Benchmark, methods: list[Method], seed: int) -> Findings:
    left_out = {method.name: reason for method in methods if (reason := method.why_not(benchmark))}
    kept = {}
    for method in methods:
        if isinstance(method, Answering) and method.name not in left_out:
            file = AnswerFile(folder, benchmark.name, method.name)
            kept[method.name] = file.resume(benchmark, partial(method.graded, benchmark=benchmark, seed=seed))
    answered = set.intersection(*map(set, kept.values()))
    benchmark.leave_out({item.id for item in benchmark.items()} - answered, TOO_LONG)
    digest = read_bytes(folder / QUESTIONS.format(benchmark.name), "digest of the questions").strip()
    if digest != questions_digest(benchmark).encode():
        raise UserError(f"{benchmark.name} has other questions, prompts or exemplars than were asked.")
    return findings(collect(benchmark, methods, kept, left_out, seed))
