"""Real runs of the command line on the built-in pair, small enough for a test."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import mlflow
import pytest
import torch

from c2c_lightning.cli.commands import main
from c2c_lightning.errors import UserError
from c2c_lightning.models.loading import load_model
from c2c_lightning.runs import held

PROJECT = Path(__file__).parents[2]
BASE = str(PROJECT / "conf" / "base.yaml")
SMALL = [
    "--model.fuser.init_args.hidden=16",
    "--data.init_args.batch_size=16",
    "--trainer.limit_val_batches=1",
    "--data.init_args.val_batch_size=8",
    "--trainer.enable_progress_bar=false",
]


class RaiseSignal(L.Callback):
    """Sends a signal to the run itself after an optimizer step, as Ctrl-C or a cluster would."""

    def __init__(self, step: int, number: int = signal.SIGTERM):
        self.step, self.number = step, number

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(self.number)


class Spoil(L.Callback):
    """Makes a gradient of the first gate NaN from a step on, or the gate itself."""

    def __init__(self, hook: str, step: int):
        self.step = step
        setattr(self, hook, getattr(self, f"_{hook}"))

    def _on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step >= self.step:
            module.communicator.fusers[0].gate.logit.grad[0] = math.nan

    def _on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step > self.step:
            module.communicator.fusers[0].gate.logit.data[0] = math.nan


class FailAtValidation(L.Callback):
    """Ends a run in the validation after an optimizer step."""

    def __init__(self, step: int):
        self.step = step

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("the power is off")


class NoteSchedule(L.Callback):
    """Writes learning rate and temperature of every step into `schedule.jsonl` of the working folder."""

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        temperature = module.communicator.fusers[0].gate.config.temperature_at(
            trainer.global_step, module.schedule.total_at(trainer.global_step)
        )
        with open("schedule.jsonl", "a") as file:
            file.write(json.dumps([trainer.global_step, rate, temperature]) + "\n")


class CompareWithShipped(L.Callback):
    """Asserts that the frozen models are what was shipped, and the fuser is not what it was."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.before = [parameter.clone() for parameter in module.communicator.fusers.parameters()]

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        communicator = module.communicator
        for name, model in (
            (module.receiver, communicator.models.receiver),
            (module.sharers[0], communicator.models.sharers[0]),
        ):
            shipped = load_model(name).state_dict()
            assert all(torch.equal(value, shipped[key]) for key, value in model.state_dict().items())
            assert all(parameter.grad is None for parameter in model.parameters())
        after = list(communicator.fusers.parameters())
        assert not any(torch.equal(old, new) for old, new in zip(self.before, after))


class ExpectHeld(L.Callback):
    """Asserts that no other run can take this one's folder."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        with pytest.raises(UserError, match="another run is writing"), held(Path(trainer.default_root_dir), "run"):
            pass


class Fail(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        raise RuntimeError("the disk is on fire")


@dataclass
class Run:
    """A finished run's folder, and its MLflow run."""

    folder: Path
    store: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    def checkpoint(self, name: str = "last.ckpt") -> dict[str, Any]:
        return torch.load(self.folder / "checkpoints" / name, weights_only=True)

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.store)

    @property
    def tracked(self) -> mlflow.entities.Run:
        where = json.loads((self.folder / "mlflow.json").read_text())
        return self.client.get_run(where["run_id"])


def command(workspace: Path, *args: str, tracking_uri: str | None = None) -> None:
    """Runs a command in a working folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr("sys.argv", ["c2c_lightning"])
        # MLflow remembers a run's store in the environment of the process.
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if tracking_uri is not None:
            patch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        main(args)


def newest(workspace: Path) -> Run:
    folder = max((workspace / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
    return Run(folder, f"sqlite:///{workspace / 'mlflow.db'}")


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two checkpoints hold the same fuser to the bit."""
    a, b = first["state_dict"], second["state_dict"]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
