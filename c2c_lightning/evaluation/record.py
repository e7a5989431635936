"""What an evaluation leaves behind: its folder, and the same in MLflow.

runs/<run>/evaluation-<settings>/
  config.yaml       everything that was configured, resolved
  answers/          every answer of every method, as they came; a rerun goes on after the last
  measured/         what was measured on the caches of whole benchmarks
  figures/          PNG
  results.json      all numbers of the report
  report.html, report.md
  mlflow.json       where its MLflow run is
"""

from __future__ import annotations

import json
import time
from collections.abc import Container
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.table import Table

from c2c_lightning.evaluation.findings import findings
from c2c_lightning.evaluation.module import Evaluation
from c2c_lightning.evaluation.reading_guide import reading_guide
from c2c_lightning.evaluation.report import write_report
from c2c_lightning.evaluation.section import Section
from c2c_lightning.evaluation.wording import sections
from c2c_lightning.tracking import MLflowTracker, find_tracker, note_tracking, noted_tracking

CONFIG_FILE, RESULTS_FILE, FIGURES = "config.yaml", "results.json", "figures"


class EvaluationRecord(L.Callback):
    """Keeps the record, and writes the report when every question is answered.

    Args:
        parser: of the configuration.
        config: the configuration.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace):
        self.parser, self.config = parser, config

    def on_test_start(self, trainer: L.Trainer, module: Evaluation) -> None:
        self.started = time.perf_counter()
        if not trainer.is_global_zero:
            return
        folder = module.folder
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config.trainer.default_root_dir = None
        text = self.parser.dump(config, skip_none=False)
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
        rank_zero_info(f"evaluation: {folder}")
        tracker = find_tracker(trainer)
        if tracker is not None:
            tracker.begin()
            if not noted_tracking(folder):
                settings = yaml.safe_load(text)
                tracker.log_hyperparams({key: settings[key] for key in ("model", "data")})
            tracker.log_artifact(folder / CONFIG_FILE)
            tracker.set_tags({"run_folder": str(folder.resolve()), "fuser": module.fuser})
            note_tracking(tracker, folder)

    def on_test_end(self, trainer: L.Trainer, module: Evaluation) -> None:
        if trainer.is_global_zero:
            # The test loop has gradients off; the transformation oracle is trained.
            with torch.inference_mode(False), torch.enable_grad():
                report(trainer, module, time.perf_counter() - self.started)
        trainer.strategy.barrier()

    def on_exception(self, trainer: L.Trainer, module: Evaluation, exception: BaseException) -> None:
        if trainer.is_global_zero and isinstance(exception, KeyboardInterrupt):
            rank_zero_info(f"\nStopped; {module.folder} keeps all answers so far. The same command goes on.")
            for logger in trainer.loggers:
                logger.finalize("interrupted")


def report(trainer: L.Trainer, module: Evaluation, seconds: float) -> None:
    """Writes the report and all that it is made of, and hands them to MLflow.

    Args:
        trainer: of the evaluation.
        module: whose questions are all answered.
        seconds: that answering took.
    """
    folder = module.folder
    facts = {**describe(module), "answered in": f"{seconds:.0f} s", "date": datetime.now().strftime("%Y-%m-%d %H:%M")}
    parts: dict[str, list[Section]] = {}
    found: dict[str, Any] = {}
    for results in module.results():
        name = results.benchmark.name
        figures = folder / FIGURES / name
        figures.mkdir(parents=True, exist_ok=True)
        found[name] = findings(results.only([method.name for method in module.compared]))
        parts[name] = sections(found[name], figures)
        for analysis in module.analyses:
            rank_zero_info(f"{name}: {type(analysis).__name__}")
            section = analysis.section(module.communicator, results, figures)
            if section is not None:
                parts[name].append(section)
    parts["How to read this"] = reading_guide(list(found.values()))
    title = f"What the cache said: {facts['pair']}"
    text = json.dumps({"title": title, "facts": facts, "benchmarks": found}, indent=2, ensure_ascii=False)
    (folder / RESULTS_FILE).write_text(text + "\n", encoding="utf-8")
    write_report(folder, title, facts, parts)
    tracker = find_tracker(trainer)
    if tracker is not None:
        log_report(tracker, folder, found, parts, logged=module.accuracy)
    show(found, folder)


def describe(module: Evaluation) -> dict[str, str]:
    """What was evaluated, for someone who was not there."""
    communicator = module.communicator
    config = communicator.config()
    size = sum(parameter.numel() for parameter in communicator.fusers.parameters())
    sharers = " + ".join(config["sharers"])
    return {
        "pair": f"{Path(config['receiver']).name} <- {' + '.join(Path(s).name for s in config['sharers'])}",
        "receiver": f"{config['receiver']} ({communicator.receiver.num_parameters():,} parameters)",
        "sharer": f"{sharers} ({sum(s.num_parameters() for s in communicator.sharers):,} parameters)",
        "fuser": f"{module.fuser} ({config['fuser']['class_path'].rpartition('.')[2]}, {size:,} parameters)",
        "alignment": config["alignment"],
        "layers": f"{config['layers']} ({config['layer_map']} layer map)",
        "gate": ", ".join(f"{key} {value}" for key, value in config["gate"].items() if value is not None),
        "device": f"{module.trainer.world_size} x {module.device.type}",
        "questions read together": str(module.trainer.datamodule.batch_size),
        "seed": str(module.trainer.datamodule.seed),
    }


def log_report(
    tracker: MLflowTracker,
    folder: Path,
    found: dict[str, Any],
    parts: dict[str, list[Section]],
    logged: Container[str],
) -> None:
    """Hands report, figures, tables, gains, and the accuracies that are not `logged` yet to MLflow."""
    for name in (RESULTS_FILE, "report.html", "report.md"):
        tracker.log_artifact(folder / name)
    tracker.log_artifact(folder / FIGURES, FIGURES)
    for name, part in parts.items():
        for section in part:
            for caption, table in section.tables.items():
                tracker.log_table(table, f"tables/{name}/{slug(section.title)}/{slug(caption)}.json")
    metrics = {}
    for name, numbers in found.items():
        scores = {f"{name}/{method}": of["accuracy"]["value"] for method, of in numbers["methods"].items()}
        metrics |= {f"accuracy/{key}": score for key, score in scores.items() if key not in logged}
        for key in ("question_specific_gain", "raw_gain"):
            if numbers.get(key):
                difference = numbers[key]["difference"]
                metrics |= {f"{name}/{key}": difference["value"], f"{name}/{key}_low": difference["low"]}
    tracker.log_metrics(metrics)


def slug(words: str) -> str:
    """Words as a file name."""
    return "_".join("".join(c if c.isalnum() else " " for c in words.lower()).split())[:80] or "table"


def show(found: dict[str, Any], folder: Path) -> None:
    """Prints the accuracies and where the report is."""
    console = Console()
    for name, numbers in found.items():
        table = Table(title=f"{name}: {numbers['num_items']} questions")
        for column in ("method", "score", "95% interval"):
            table.add_column(column, justify="left" if column == "method" else "right")
        for method, of_method in numbers["methods"].items():
            score = of_method["accuracy"]
            table.add_row(method, f"{score['value']:.1%}", f"{score['low']:.1%} to {score['high']:.1%}")
        console.print(table)
        gain = numbers.get("question_specific_gain")
        if gain:
            points = {key: f"{100 * value:+.1f}" for key, value in gain["difference"].items()}
            verdict = "" if gain["significant"] else ", not significant"
            console.print(
                f"question-specific gain: {points['value']} points [{points['low']}, {points['high']}], "
                f"over {gain['over']}{verdict}"
            )
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)
