"""Real sweeps of tiny trials on the built-in pair, as a user runs them."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import yaml

from c2c_lightning.cli.sweep import read_sweep
from c2c_lightning.files import PROJECT
from c2c_lightning.fuser import C2CFuser
from c2c_lightning.sweep.process import LOCK
from c2c_lightning.sweep.trials import Trials
from tests.training.runs import BASE

TINY = {
    "trainer.max_steps": 20,
    "trainer.val_check_interval": 5,
    "trainer.limit_val_batches": 1,
    "data.init_args.batch_size": 16,
    "data.init_args.val_batch_size": 8,
    "model.fuser.init_args.hidden": 16,
}
PATIENCE = 1200.0


class BurningFuser(C2CFuser):
    """A fuser with which training crashes at its first step."""

    def update(self, *args: Any) -> Any:
        raise RuntimeError("the disk is on fire")


@dataclass
class Workspace:
    """Where a sweep is run; nothing in it but what the sweep makes."""

    folder: Path

    def write(self, fixed: dict[str, Any] | None = None, **settings: Any) -> None:
        """Writes sweep.yaml: the tiny base, and what a test has of its own."""
        sweep = {"base": BASE, "fixed": {**TINY, **(fixed or {})}, "metric": "val/loss", "mode": "min", **settings}
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(sweep))

    def start(self, *args: str) -> subprocess.Popen:
        """Starts `sweep` as a command of its own; its output goes to out.txt."""
        foreign = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
        environment = {name: value for name, value in os.environ.items() if name not in foreign}
        with (self.folder / "out.txt").open("w") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "c2c_lightning", "sweep", *args],
                cwd=self.folder,
                env={**environment, "PYTHONPATH": str(PROJECT)},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def run(self, *args: str) -> int:
        """Runs `sweep` to its end; returns its exit code."""
        return self.start(*(args or ("--config", "tiny.yaml"))).wait(PATIENCE)

    @property
    def said(self) -> str:
        return (self.folder / "out.txt").read_text()

    @property
    def sweep(self) -> Path:
        (only,) = (self.folder / "runs" / "sweeps").iterdir()
        return only

    @property
    def trials(self) -> Trials:
        """What the study says; only while no driver is at work."""
        return Trials(self.sweep, read_sweep(["--config", str(self.sweep / "sweep.yaml")])[0])

    @property
    def states(self) -> list[str]:
        return [trial.state for trial in self.trials.refresh()]

    @property
    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.sweep / "sweep.csv")

    def trial(self, number: int) -> Path:
        return self.folder / "runs" / "sweeps" / self.sweep.name / "trials" / f"{number:03d}"

    def tracked(self) -> tuple[mlflow.entities.Run, dict[str, mlflow.entities.Run]]:
        """The sweep's MLflow run, and by trial those below it."""
        client = self.client
        parent = client.get_run(json.loads((self.sweep / "mlflow.json").read_text())["run_id"])
        below = client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", max_results=100
        )
        return parent, {run.info.run_name[:3]: run for run in below}

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> None:
    """Waits until something has happened."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def is_free(folder: Path) -> bool:
    """Whether no process is at work on a trial's folder."""
    if not (folder / LOCK).exists():
        return True
    with (folder / LOCK).open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may stand in the list until somebody asks for its exit code."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def process_of(trial: Path) -> int | None:
    """The process that trains a trial, if one does."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:  # it has ended
            continue
        if words[2:3] == ["c2c_lightning"] and any(str(trial) in word for word in words):
            return int(folder.name)
    return None
