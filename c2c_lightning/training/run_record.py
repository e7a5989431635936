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
from c2c_lightning.runs import CHECKPOINTS, CONFIG_FILE, FUSER, LAST, SUMMARY_FILE, Interrupted, write_whole
from c2c_lightning.tracking import MLFLOW_FILE, find_tracker, note_tracking


class RunRecord(L.Callback):
    """Keeps the record while the run goes on.

    It stands where `LightningCLI` has its SaveConfigCallback, which writes too early: until training
    starts a run may still be refused, and then must leave no trace.

    Args:
        parser: of the configuration.
        config: the configuration.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace):
        self.parser, self.config = parser, config
        self.started: float | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started = time.perf_counter()
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # Without its own folder and checkpoint, so that the file can be run again as it is.
        config = self.config.clone()
        config.trainer.default_root_dir, config.ckpt_path = None, None
        text = self.parser.dump(config, skip_none=False)
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
        tracker = find_tracker(trainer)
        if tracker is None:
            return
        tracker.begin()
        settings = yaml.safe_load(text)
        if not (folder / MLFLOW_FILE).exists():
            tracker.log_hyperparams({key: settings[key] for key in ("seed_everything", "model", "data", "trainer")})
        tracker.log_artifact(folder / CONFIG_FILE)
        sharers = " + ".join(Path(sharer).name for sharer in module.sharers)
        tracker.set_tags(
            {
                "pair": f"{Path(module.receiver).name} <- {sharers}",
                "fuser": type(module.communicator.fusers[0]).__name__,
                "run_folder": str(folder.resolve()),
            }
        )
        note_tracking(tracker, folder)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Sees to it that the last step is the one that is validated, saved and exported."""
        if module.validated_at != trainer.global_step:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        folder = Path(trainer.default_root_dir)
        if trainer.checkpoint_callback is not None:
            trainer.save_checkpoint(folder / CHECKPOINTS / LAST, weights_only=False)
        if trainer.is_global_zero:
            module.communicator.save_pretrained(folder / FUSER)
            tracker = find_tracker(trainer)
            if tracker is not None:
                tracker.log_artifact(folder / FUSER, FUSER)
                note_tracking(tracker, folder)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.started is None:
            rank_zero_info(f"Nothing to do: the run is at step {trainer.global_step} already, and is left as it was.")
        elif trainer.is_global_zero:
            summarize(trainer, time.perf_counter() - self.started)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        refused = self.started is None and isinstance(exception, UserError)
        if not trainer.is_global_zero or refused:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tracker = find_tracker(trainer)
        if tracker is not None:
            tracker.begin()
        if not isinstance(exception, (Interrupted, KeyboardInterrupt)):
            text = "".join(traceback.format_exception(exception))
            (folder / "traceback.txt").write_text(text, encoding="utf-8")
            if tracker is not None:
                tracker.log_artifact(folder / "traceback.txt")
                tracker.set_tags({"error": f"{type(exception).__name__}: {exception}"[:500]})
        if tracker is not None:
            tracker.save_undelivered(folder)


def summarize(trainer: L.Trainer, seconds: float) -> None:
    """Writes `summary.json` and prints the same as a table.

    Args:
        trainer: of the finished run, with its last metrics.
        seconds: that training took, validation included.
    """
    folder = Path(trainer.default_root_dir)
    metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
    summary: dict[str, Any] = {"steps": trainer.global_step, "seconds": round(seconds, 1), "metrics": metrics}
    write_whole(folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    tracker = find_tracker(trainer)
    if tracker is not None:
        tracker.log_artifact(folder / SUMMARY_FILE)
        tracker.save_undelivered(folder)
    table = Table(title=f"{trainer.global_step} steps in {seconds:.0f} s")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        is_share = name.startswith(("val/accuracy", "gate/open"))
        table.add_row(name, f"{value:.1%}" if is_share else f"{value:,.4g}")
    console = Console()
    console.print(table)
    console.print(f"fuser, checkpoints and summary.json: {folder}", soft_wrap=True)
