"""What an evaluation leaves behind: its folder, and the same in MLflow.

runs/<run>/evaluation-<settings>/
  config.yaml       everything that was configured, resolved
  settings.sha256   of what can change an answer
  answers/          every answer of every method, as they came; a rerun goes on after the last
  measured/         what was measured on the caches of whole benchmarks
  figures/          PNG
  results.json      all numbers of the report
  report.html, report.md
  mlflow.json       where its MLflow run is
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import FrameType

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.asking.module import Evaluation
from c2c_lightning.evaluation.benchmarks import grading
from c2c_lightning.evaluation.report.findings import Findings, Results, findings
from c2c_lightning.evaluation.report.page import Section, write_report
from c2c_lightning.evaluation.report.wording import reading_guide, sections, show
from c2c_lightning.files import json_text, read_bytes, write_whole
from c2c_lightning.runs import CONFIG_FILE, RESULTS_FILE, Interrupted, held
from c2c_lightning.tracking import MLflowTracker, find_tracker, noted_tracking

FIGURES, SETTINGS_FILE = "figures", "settings.sha256"


class EvaluationRecord(L.Callback):
    """Keeps the record, and writes the report when every question is answered.

    `settings` is the digest of the settings that can change an answer (see `answers.digest`).
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, settings: str = ""):
        self.parser, self.config, self.settings = parser, config, settings
        self.until_end, self.is_locked = ExitStack(), False

    def on_test_start(self, trainer: L.Trainer, module: Evaluation) -> None:
        self.started = time.perf_counter()
        then = module.folder / SETTINGS_FILE
        if then.exists() and read_bytes(then, "digest of the settings").strip() != self.settings.encode():
            raise UserError(
                f"trainer.default_root_dir {module.folder} has answers of another fuser, or under other settings, or "
                "of models that were changed since: name another folder, or leave it out, for every evaluation has a "
                "folder of its own."
            )
        # Lock before the module repairs files: another process may be writing to them.
        if trainer.is_global_zero and module.folder.is_dir():
            self._lock(module.folder)

    def on_test_epoch_start(self, trainer: L.Trainer, module: Evaluation) -> None:
        """Begins the record, now that nothing refuses the evaluation any more."""
        # Lightning would end on SIGTERM as if all were done.
        for number in (signal.SIGINT, signal.SIGTERM):
            self.until_end.callback(signal.signal, number, signal.signal(number, interrupt))
        if not trainer.is_global_zero:
            return
        folder = module.folder
        self._lock(folder)
        write_whole(folder / SETTINGS_FILE, f"{self.settings}\n")
        config = self.config.clone()
        config.trainer.default_root_dir = None
        text = self.parser.dump(config, skip_none=False)
        write_whole(folder / CONFIG_FILE, text)
        rank_zero_info(f"evaluation: {folder}")
        tracker = find_tracker(trainer)
        if tracker is not None:
            is_new = not noted_tracking(folder)
            tracker.begin(folder)
            if is_new:
                written = yaml.safe_load(text)
                tracker.log_hyperparams({key: written[key] for key in ("model", "data")})
            tracker.log_artifact(folder / CONFIG_FILE)
            tracker.set_tags({"run_folder": str(folder.resolve()), "fuser": module.fuser})

    def on_test_end(self, trainer: L.Trainer, module: Evaluation) -> None:
        if trainer.is_global_zero:
            report(trainer, module, time.perf_counter() - self.started)
        trainer.strategy.barrier()

    def on_exception(self, trainer: L.Trainer, module: Evaluation, exception: BaseException) -> None:
        self.until_end.close()
        if not trainer.is_global_zero:
            return
        if isinstance(exception, (Interrupted, KeyboardInterrupt)):
            rank_zero_info(f"\nStopped; {module.folder} keeps all answers so far. The same command goes on.")
            for logger in trainer.loggers:
                logger.finalize("interrupted")
        tracker = find_tracker(trainer)
        if tracker is not None and module.folder.is_dir():
            tracker.save_undelivered(module.folder)

    def teardown(self, trainer: L.Trainer, module: Evaluation, stage: str) -> None:
        self.until_end.close()

    def _lock(self, folder: Path) -> None:
        """Keeps other evaluations from the folder."""
        if not self.is_locked:
            self.until_end.enter_context(held(folder, "evaluation"))
            self.is_locked = True


def interrupt(number: int, frame: FrameType | None) -> None:
    """Ends the evaluation at once: answers are kept as they come, so nothing is lost but those under way."""
    raise Interrupted(128 + number)


def report(trainer: L.Trainer, module: Evaluation, seconds: float) -> None:
    """Writes the report of a module whose questions are all answered, in `seconds`, and hands it to MLflow."""
    folder = module.folder
    facts = describe(module) | {
        "answered in": f"{seconds:.0f} s (this time; answers that were there already took none)",
        "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
    }
    parts: dict[str, list[Section]] = {}
    found: dict[str, Findings] = {}
    kinds = [type(analysis).__name__ for analysis in module.analyses]
    for results in module.results:
        name = results.benchmark.name
        figures = folder / FIGURES / name
        found[name] = findings(results, [method.name for method in module.compared])
        parts[name] = sections(found[name], figures)
        for k, (kind, analysis) in enumerate(zip(kinds, module.analyses)):
            rank_zero_info(f"{name}: {kind}")
            # Two of a kind, with other arguments, have figures of the same names.
            drawn = figures if kinds.index(kind) == k else figures / f"{kind}_{k}"
            drawn.mkdir(exist_ok=True)
            section = analysis.section(module.communicator, results, drawn)
            if section is not None:
                parts[name].append(section)
    parts["How to read this"] = reading_guide(list(found.values()))
    title = f"What cache communication gave: {facts['pair']}"
    write_report(folder, title, facts, parts)
    write_whole(folder / RESULTS_FILE, json_text(Results(title, facts, found, grading.version())))
    tracker = find_tracker(trainer)
    if tracker is not None:
        log_report(tracker, folder, found, parts)
        tracker.save_undelivered(folder)
    show(found, folder)


def describe(module: Evaluation) -> dict[str, str]:
    """What was evaluated, for someone who was not there."""
    communicator = module.communicator
    config = communicator.config()
    size = sum(parameter.numel() for parameter in communicator.fusers.parameters())
    sharers = " + ".join(config["sharers"])
    trained = [config[part]["class_path"].rpartition(".")[2] for part in ("fuser", "mapper") if config.get(part)]
    fused = {
        "layers": f"{config['layers']} ({config['layer_map']} layer map)",
        "gate": ", ".join(f"{key} {value}" for key, value in config["gate"].items() if value is not None),
    }
    return {
        "pair": f"{' + '.join(Path(s).name for s in config['sharers'])} to {Path(config['receiver']).name}",
        "receiver": f"{config['receiver']} ({communicator.models.receiver.num_parameters():,} parameters)",
        "sharer": f"{sharers} ({sum(s.num_parameters() for s in communicator.models.sharers):,} parameters)",
        "fuser": f"{module.fuser} ({' and '.join(trained)}, {size:,} parameters)",
        "alignment": config["alignment"],
        **(fused if config["fuser"] else {}),
        "precision": f"frozen models in {str(communicator.models.receiver.dtype).removeprefix('torch.')}, trainer.precision "
        f"{module.trainer.precision}",
        "device": f"{module.trainer.world_size} x {module.device.type}",
        "questions read together": str(module.trainer.datamodule.batch_size),
        "seed": str(module.trainer.datamodule.seed),
    }


def log_report(
    tracker: MLflowTracker, folder: Path, found: dict[str, Findings], parts: dict[str, list[Section]]
) -> None:
    """Hands report, figures, tables and gains to MLflow."""
    for name in (RESULTS_FILE, "report.html", "report.md"):
        tracker.log_artifact(folder / name)
    tracker.log_artifact(folder / FIGURES, FIGURES)
    for name, part in parts.items():
        for section in part:
            for caption, table in section.tables.items():
                tracker.log_table(table, f"tables/{name}/{slug(section.title)}/{slug(caption)}.json")
    metrics = {}
    for name, of in found.items():
        for key, gain in (("question_specific_gain", of.question_specific_gain), ("raw_gain", of.raw_gain)):
            if gain:
                metrics |= {f"{name}/{key}": gain.difference.value, f"{name}/{key}_p": gain.p}
                metrics |= {f"{name}/{key}_low": gain.difference.low, f"{name}/{key}_high": gain.difference.high}
    tracker.log_metrics(metrics)


def slug(words: str) -> str:
    """Words as a file name."""
    return "_".join("".join(c if c.isalnum() else " " for c in words.lower()).split())[:80] or "table"
