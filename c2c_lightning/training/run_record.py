"""What a run leaves behind: its folder, and the same in MLflow.

runs/<date and time>/
  config.yaml       everything that was configured, resolved
  checkpoints/      last.ckpt and the newest numbered ones; fusers and optimizer, no frozen weight
  fuser/            config.json and model.safetensors, for `Communicator.from_pretrained`
  gates.png         the gates over training
  summary.json      final metrics
  mlflow.json       where its MLflow run is
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.table import Table

from c2c_lightning.errors import UserError
from c2c_lightning.files import write_whole
from c2c_lightning.runs import CHECKPOINTS, CONFIG_FILE, FUSER, LAST, SUMMARY_FILE, Interrupted
from c2c_lightning.training.gate_map import GateMap
from c2c_lightning.training.sharding import whole_state
from c2c_lightning.training.trained_run import TrainedRun

TRACEBACK_FILE = "traceback.txt"


class RunRecord(L.Callback):
    """Keeps the record while the run goes on.

    It stands where `LightningCLI` has its SaveConfigCallback, which writes too early: until training
    starts a run may still be refused, and then must leave no trace.

    Args:
        parser: of the configuration.
        config: the configuration.
        configs: those of the runs that have their own, by the run's label, as `TrainedRun` has it.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, configs: Mapping[str, Namespace] | None = None
    ):
        self.parser, self.config, self.configs = parser, config, configs or {}
        self.started: float | None = None

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        # Ranks that a cluster started have each read the clock to name it.
        trainer._default_root_dir = trainer.strategy.broadcast(trainer.default_root_dir)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started = time.perf_counter()
        if trainer.is_global_zero:
            for run in module.runs():
                self.begin(run)

    def begin(self, run: TrainedRun) -> None:
        """Writes what is known of a run before its first step."""
        run.folder.mkdir(parents=True, exist_ok=True)
        # Without its own folder and checkpoint, so that the file can be run again as it is.
        config = self.configs.get(run.label, self.config).clone()
        config.trainer.default_root_dir, config.ckpt_path = None, None
        text = self.parser.dump(config, skip_none=False)
        write_whole(run.folder / CONFIG_FILE, text)
        tracker = run.tracker
        if tracker is None:
            return
        tracker.begin(run.folder)
        settings = yaml.safe_load(text)
        if not run.resumed:
            tracker.log_hyperparams({key: settings[key] for key in ("seed_everything", "model", "data", "trainer")})
        tracker.log_artifact(run.folder / CONFIG_FILE)
        sharers = " + ".join(Path(sharer).name for sharer in run.module.sharers)
        tracker.set_tags(
            {
                "pair": f"{Path(run.module.receiver).name} <- {sharers}",
                "fuser": run.module.communicator.fusers[0].class_path.rpartition(".")[2],
                "run_folder": str(run.folder.resolve()),
            }
        )

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Sees to it that the last step is the one that is validated, saved and exported."""
        if module.validated_at != trainer.global_step:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        if trainer.checkpoint_callback is not None:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / CHECKPOINTS / LAST, weights_only=False)
        for run in module.runs():
            communicator = run.module.communicator
            state = whole_state(communicator.fusers)
            if trainer.is_global_zero:
                communicator.save_pretrained(run.folder / FUSER, state)
                if run.tracker is not None:
                    run.tracker.log_artifact(run.folder / FUSER, FUSER)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # Cut off after its last step, and so before its end, for which Lightning sees no reason to train.
        unended = [run for run in module.runs() if run.resumed and not (run.folder / SUMMARY_FILE).exists()]
        if self.started is None and trainer.strategy.broadcast(bool(unended)):
            self.on_train_start(trainer, module)
            for callback in trainer.callbacks:
                if isinstance(callback, (RunRecord, GateMap)):  # others never saw a start
                    callback.on_train_end(trainer, module)
        if self.started is None:
            rank_zero_info(f"Nothing to do: the run is at step {trainer.global_step} already, and is left as it was.")
        elif trainer.is_global_zero:
            for run in module.runs():
                summarize(run, time.perf_counter() - self.started)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        refused = self.started is None and isinstance(exception, UserError)
        if not trainer.is_global_zero or refused:
            return
        for run in module.runs():
            note_exception(run, exception)


def note_exception(run: TrainedRun, exception: BaseException) -> None:
    """Leaves word of what ended a run: a traceback, unless somebody asked it to stop."""
    tracker = run.tracker
    with suppress(OSError):  # a full disk may be what ended it
        run.folder.mkdir(parents=True, exist_ok=True)
        if not isinstance(exception, (Interrupted, KeyboardInterrupt)):
            text = "".join(traceback.format_exception(exception))
            (run.folder / TRACEBACK_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
    if tracker is not None:
        tracker.begin(run.folder)
        if (run.folder / TRACEBACK_FILE).exists():
            tracker.log_artifact(run.folder / TRACEBACK_FILE)
        if not isinstance(exception, (Interrupted, KeyboardInterrupt)):
            tracker.set_tags({"error": f"{type(exception).__name__}: {exception}"[:500]})
        tracker.save_undelivered(run.folder)


def is_share(metric: str) -> bool:
    """Whether a metric is shown in percent."""
    return metric.startswith(("val/accuracy", "gate/open"))


def summarize(run: TrainedRun, seconds: float) -> None:
    """Writes `summary.json` and prints the same as a table.

    Args:
        run: that has finished, with its last metrics.
        seconds: that training took, validation included.
    """
    steps = run.trainer.global_step
    metrics = {name: float(value) for name, value in sorted(run.metrics.items())}
    summary: dict[str, Any] = {"steps": steps, "seconds": round(seconds, 1), "metrics": metrics}
    write_whole(run.folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    if run.tracker is not None:
        run.tracker.log_artifact(run.folder / SUMMARY_FILE)
        run.tracker.save_undelivered(run.folder)
    table = Table(title=f"{steps} steps in {seconds:.0f} s")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.1%}" if is_share(name) else f"{value:,.4g}")
    console = Console(markup=False)  # folders may have brackets in their names
    console.print(table)
    console.print(f"fuser, checkpoints and summary.json: {run.folder}", soft_wrap=True)
