"""A trial as Ray Tune runs it: an ordinary `fit` in a process of its own, followed by its progress."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from ray import tune

from c2c_lightning.runs import CHECKPOINTS, CONFIG_FILE, LAST, PROGRESS_FILE, SUMMARY_FILE, TRIAL_FILE
from c2c_lightning.sweep.ledger import read_progress
from c2c_lightning.sweep.process import TrainingProcess, held, log_tail

HEARTBEAT = 2.0
POLL = 0.1
GROUP_FILE = "group"  # with whom a trial was trained last; without one, by itself


class TrialCrashed(Exception):
    """A training process ended without a result; Tune begins the trial again, from its last checkpoint."""


def has_checkpoint(folder: Path) -> bool:
    """Whether a trial can go on from where it was cut off."""
    return (folder / CHECKPOINTS / LAST).exists()


def clear_false_start(folder: Path) -> None:
    """Removes what a start left that came to no checkpoint; for whoever holds the folder."""
    if not has_checkpoint(folder):
        for file in (CONFIG_FILE, PROGRESS_FILE):
            (folder / file).unlink(missing_ok=True)


class ProcessTrial(tune.Trainable):
    """Starts the process and reports a result for every validation.

    What the process leaves in its folder decides what became of it; its exit code alone says little, since a
    process that was asked to stop may end with 0.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self.folder, self.metric = Path(config["folder"]), config["metric"]
        self.reported = 0
        self.process = None if self.has_result() else self.start(config)

    def start(self, config: dict[str, Any]) -> TrainingProcess | None:
        """Starts the trial, or goes on with it from its last checkpoint, unless it turns out to have ended."""
        # What is to be done shows only when nobody is at work there any more.
        with held([self.folder]) as locks:
            if self.has_result():
                return None
            clear_false_start(self.folder)
            (self.folder / GROUP_FILE).unlink(missing_ok=True)
            arguments = [
                *("fit", "--config", str(self.folder / TRIAL_FILE)),
                *("--trainer.default_root_dir", str(self.folder), "--trainer.enable_progress_bar", "false"),
                *(["--ckpt_path", str(self.folder)] if has_checkpoint(self.folder) else []),
            ]
            return TrainingProcess(arguments, locks, Path(config["working_folder"]), config["cpus"])

    def step(self) -> dict[str, Any]:
        # Never longer than a heartbeat, so that Tune can stop a trial whose next validation is far away.
        until = time.monotonic() + HEARTBEAT
        while True:
            ended = self.has_ended()
            rows = read_progress(self.folder)
            if self.reported < len(rows):
                row = rows[self.reported]
                is_last = self.has_result() and self.reported == len(rows) - 1
                # The last validation is not the end: the fuser is still to be exported.
                if row["step"] < row["max_steps"] or is_last:
                    self.reported += 1
                    return self.result(row, is_last)
            if ended and self.has_result():
                # By its own choice, before its last step; or it never validated, and never will.
                return self.result(rows[-1], True) if rows else {"step": 0, "known_metrics": [], "done": True}
            if ended:
                return self.failed()
            if time.monotonic() > until:
                return {"step": rows[self.reported - 1]["step"] if self.reported else 0}
            time.sleep(POLL)

    def result(self, row: dict[str, Any], is_last: bool) -> dict[str, Any]:
        """What Tune is told of a validation."""
        if self.metric not in row["metrics"]:
            return {"step": row["step"], "known_metrics": sorted(row["metrics"]), "done": True}
        value = row["metrics"][self.metric]
        percent = 100 * row["step"] / row["max_steps"]
        value = math.nan if value is None else value
        return {self.metric: value, "step": row["step"], "percent": percent, "finished": is_last, "done": is_last}

    def failed(self) -> dict[str, Any]:
        """The end of a trial that has no result: for good if it was refused, or else by raising."""
        lines = log_tail(self.folder).splitlines()
        refusals = [line for line in lines[-5:] if line.startswith("error: ")]
        if refusals:  # by us, and would be again
            return {"step": 0, "refused": refusals[-1].removeprefix("error: "), "done": True}
        raise TrialCrashed(lines[-1] if lines else "it printed nothing")

    def has_result(self) -> bool:
        """Whether the trial has been trained to its end."""
        return (self.folder / SUMMARY_FILE).exists()

    def has_ended(self) -> bool:
        """Whether nobody is at work on it any more."""
        # Asked before the last rows are read, or one that came in between would be missed.
        return self.process is None or self.process.returncode() is not None

    def cleanup(self) -> None:
        if self.process is not None:
            self.process.stop()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: the trial's folder has all."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load: `setup` goes on from the trial's folder."""
