"""What it takes to train several runs at the price of one prefill: each leaves what it would have left alone.

`C2CModule` reads each batch once for all of its runs; here are their checkpoints, their metrics, and how one of them is
stopped. The trainer dumps one checkpoint for all, in which what belongs to one run has its label in its name: it is cut
apart when it is saved, and put together again when the runs are resumed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from c2c_lightning.errors import UserError
from c2c_lightning.runs import STOP_FILE
from c2c_lightning.training.checkpoints import CheckpointWriter, save_last
from c2c_lightning.training.module import C2CModule
from c2c_lightning.training.run import Run, own
from c2c_lightning.training.sharding import renamed

# What a checkpoint has of its run alone, besides weights and optimizer; see `Run.save`.
OF_A_RUN = ("c2c", "run", "held_out")


def join(modules: Sequence[C2CModule], folders: Sequence[Path], loggers: Sequence[Sequence[Logger]]) -> C2CModule:
    """The first of several modules that differ in nothing but their runs; it now trains the runs of all of them."""
    runs = [run for module in modules for run in module.runs]
    for number, (run, folder, own_loggers) in enumerate(zip(runs, folders, loggers)):
        run.label, run.folder, run.loggers = f"run{number}_", folder, own_loggers
    modules[0].runs = runs
    return modules[0]


class SharedLogger(Logger):
    """Hands every run's metrics to its own loggers; a run that is stopped is taken out of the list."""

    def __init__(self, runs: list[Run]):
        super().__init__()
        self.runs = runs

    @property
    def name(self) -> str:
        return "shared"

    @property
    def version(self) -> None:
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for run in self.runs:
            for logger in run.loggers:
                logger.log_metrics(own(metrics, run.label), step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Each run's are in its record."""

    def finalize(self, status: str) -> None:
        for run in self.runs:
            for logger in run.loggers:
                logger.finalize(status)


class StopFiles(L.Callback):
    """Ends a run after a validation if a file `stop` lies in its folder, as if it had been interrupted.

    It has its checkpoint, and the other runs go on as they would without it.
    """

    def on_validation_end(self, trainer: L.Trainer, module: C2CModule) -> None:
        # What is at its last step anyway shall finish.
        if trainer.sanity_checking or trainer.global_step >= module.num_steps():
            return
        stopped = [run for run in module.runs if (run.folder / STOP_FILE).exists()]
        if stopped and trainer.checkpoint_callback is not None:
            save_last(trainer)
        for run in stopped:
            for logger in run.loggers:
                logger.finalize("interrupted")
            if run.tracker is not None:
                run.tracker.save_undelivered(run.folder)
            module.runs.remove(run)
        trainer.should_stop |= not module.runs


class SharedCheckpointIO(CheckpointWriter):
    """Saves, loads and removes each run's part in its folder, for a path in the first one's."""

    def __init__(self, runs: list[Run]):
        self.runs, self.first = runs, runs[0].folder.resolve()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        for run in self.runs:
            part = moved(part_of(checkpoint, run.label), self.first, run.folder.resolve())
            super().save_checkpoint(part, self._of(run, path), storage_options)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        load = super().load_checkpoint
        parts = {run.label: load(self._of(run, path), *args, **kwargs) for run in self.runs}
        steps = {str(run.folder): parts[run.label]["global_step"] for run in self.runs}
        if len(set(steps.values())) > 1:
            where = ", ".join(f"{folder} at step {step}" for folder, step in steps.items())
            raise UserError(f"trials go on together only from the same step, and these are not: {where}.")
        return joined(parts)

    def remove_checkpoint(self, path: str | Path) -> None:
        for run in self.runs:
            super().remove_checkpoint(self._of(run, path))

    def _of(self, run: Run, path: str | Path) -> Path:
        return run.folder / Path(path).resolve().relative_to(self.first)


def part_of(checkpoint: Mapping[str, Any], label: str) -> dict[str, Any]:
    """A run's part of what the trainer of all dumped, as a run of its own would have saved it."""
    part = own(checkpoint, label)
    [optimizer], [schedule] = part["optimizer_states"], part["lr_schedulers"]
    mine = [i for i, group in enumerate(optimizer["param_groups"]) if group["name"].startswith(label)]
    groups = [optimizer["param_groups"][i] for i in mine]
    groups = [{**group, "name": group["name"].removeprefix(label)} for group in groups]
    keys = {key for group in groups for key in group["params"]}
    state = {key: moments for key, moments in optimizer["state"].items() if key in keys}
    return {
        **part,
        "state_dict": own(part["state_dict"], label),
        "optimizer_states": [renamed({"state": state, "param_groups": groups}, count())],
        "lr_schedulers": [
            {name: [value[i] for i in mine] if isinstance(value, list) else value for name, value in schedule.items()}
        ],
    }


def joined(parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The checkpoint of all, from ordinary ones by label; what is not of one run alone is the first one's."""
    whole = {name: value for name, value in next(iter(parts.values())).items() if name not in OF_A_RUN}
    whole["state_dict"] = {}
    optimizer: dict[str, Any] = {"state": {}, "param_groups": []}
    schedules, places = [], count()
    for label, part in parts.items():
        whole |= {f"{label}{name}": part[name] for name in OF_A_RUN if name in part}
        whole["state_dict"] |= {f"{label}{name}": value for name, value in part["state_dict"].items()}
        [state], [schedule] = part["optimizer_states"], part["lr_schedulers"]
        state = renamed(state, places)
        optimizer["state"] |= state["state"]
        optimizer["param_groups"] += [{**group, "name": f"{label}{group['name']}"} for group in state["param_groups"]]
        schedules.append(schedule)
    whole["optimizer_states"] = [optimizer]
    whole["lr_schedulers"] = [
        {
            name: [item for schedule in schedules for item in schedule[name]] if isinstance(value, list) else value
            for name, value in schedules[0].items()
        }
    ]
    return whole


def moved(value: Any, old: Path, new: Path) -> Any:
    """The same with all paths in one folder in the other."""
    if isinstance(value, dict):
        return {moved(key, old, new): moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item, old, new) for item in value]
    if isinstance(value, str) and f"{value}{os.sep}".startswith(f"{old}{os.sep}"):
        return f"{new}{value[len(str(old)) :]}"
    return value
