"""Checkpoints of trials that train together: each as an ordinary run of its own would have saved it.

The trainer dumps one checkpoint for all of them, in which what belongs to one trial has its label in its
name. It is cut apart when it is saved, and put together again when the trials are resumed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from c2c_lightning.errors import UserError
from c2c_lightning.training.checkpoints import CheckpointWriter
from c2c_lightning.training.held_out import STATE
from c2c_lightning.training.trained_run import SharedRun

LABEL = re.compile(r"trial\d+\.")
# What an ordinary checkpoint has of its run alone, besides weights and optimizer.
OF_THE_RUN, GATES, OF_GATES = "c2c", "GateMap", "history"


def label(number: int) -> str:
    """What stands in the names of all that is a trial's own."""
    return f"trial{number}."


def own(values: Mapping[str, Any], label: str) -> dict[str, Any]:
    """A trial's own values and those of all, named as in an ordinary run."""
    found = {name: LABEL.search(name) for name in values}
    return {
        name.replace(label, "", 1): values[name]
        for name, match in found.items()
        if match is None or match.group() == label
    }


class SharedCheckpointIO(CheckpointWriter):
    """Saves, loads and removes each trial's part in its folder, for a path in the first one's.

    Args:
        trials: that train together.
    """

    def __init__(self, trials: Sequence[SharedRun]):
        self.trials = trials
        self.first = trials[0].folder.resolve()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        for trial in self.trials:
            if not trial.ended:
                part = moved(part_of(checkpoint, trial.label), self.first, trial.folder.resolve())
                super().save_checkpoint(part, self._of(trial, path), storage_options)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        parts = {
            trial.label: super(SharedCheckpointIO, self).load_checkpoint(self._of(trial, path), *args, **kwargs)
            for trial in self.trials
        }
        steps = {str(trial.folder): parts[trial.label]["global_step"] for trial in self.trials}
        if len(set(steps.values())) > 1:
            where = ", ".join(f"{folder} at step {step}" for folder, step in steps.items())
            raise UserError(f"trials go on together only from the same step, and these are not: {where}.")
        return joined(parts)

    def remove_checkpoint(self, path: str | Path) -> None:
        for trial in self.trials:
            if not trial.ended:
                super().remove_checkpoint(self._of(trial, path))

    def _of(self, trial: SharedRun, path: str | Path) -> Path:
        return trial.folder / Path(path).resolve().relative_to(self.first)


def part_of(checkpoint: Mapping[str, Any], label: str) -> dict[str, Any]:
    """A trial's part of what the trainer of all dumped."""
    part = own(checkpoint, label)
    part["state_dict"] = own(part["state_dict"], label)
    part["callbacks"] = {name: own(state, label) for name, state in part["callbacks"].items()}
    optimizers, schedulers = [], []
    for optimizer, scheduler in zip(part["optimizer_states"], part["lr_schedulers"]):
        mine = [i for i, group in enumerate(optimizer["param_groups"]) if group["name"].startswith(label)]
        groups = [optimizer["param_groups"][i] for i in mine]
        places = {key: place for place, key in enumerate(key for group in groups for key in group["params"])}
        optimizers.append(
            {
                "state": {places[key]: state for key, state in optimizer["state"].items() if key in places},
                "param_groups": [
                    {
                        **group,
                        "name": group["name"].removeprefix(label),
                        "params": [places[key] for key in group["params"]],
                    }
                    for group in groups
                ],
            }
        )
        schedulers.append(
            {name: [value[i] for i in mine] if isinstance(value, list) else value for name, value in scheduler.items()}
        )
    return {**part, "optimizer_states": optimizers, "lr_schedulers": schedulers}


def joined(parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The checkpoint of all, from ordinary ones by label; what is not of one run alone is the first one's."""
    first = next(iter(parts.values()))
    whole = {name: value for name, value in first.items() if name not in (OF_THE_RUN, STATE)}
    whole["state_dict"], whole["callbacks"] = {}, dict(first["callbacks"])
    optimizer: dict[str, Any] = {"state": {}, "param_groups": []}
    schedulers = []
    gates = {name: value for name, value in first["callbacks"].get(GATES, {}).items() if name != OF_GATES}
    count = 0
    for label, part in parts.items():
        whole |= {f"{label}{name}": part[name] for name in (OF_THE_RUN, STATE) if name in part}
        whole["state_dict"] |= {f"{label}{name}": value for name, value in part["state_dict"].items()}
        if OF_GATES in part["callbacks"].get(GATES, {}):
            gates[f"{label}{OF_GATES}"] = part["callbacks"][GATES][OF_GATES]
        [state], [scheduler] = part["optimizer_states"], part["lr_schedulers"]
        optimizer["state"] |= {key + count: value for key, value in state["state"].items()}
        for group in state["param_groups"]:
            numbers = [key + count for key in group["params"]]
            optimizer["param_groups"].append({**group, "name": f"{label}{group['name']}", "params": numbers})
        count += sum(len(group["params"]) for group in state["param_groups"])
        schedulers.append(scheduler)
    whole["callbacks"][GATES] = gates
    whole["optimizer_states"] = [optimizer]
    whole["lr_schedulers"] = [
        {
            name: [item for scheduler in schedulers for item in scheduler[name]] if isinstance(value, list) else value
            for name, value in schedulers[0].items()
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
