"""A sweep's trials on disk: the one place where it stands what was tried and what became of it.

runs/sweeps/<name>/
  sweep.yaml             the sweep as it was begun
  optuna.journal         the search
  trials/<number>/       the folder of an ordinary run, and
    trial.yaml             its configuration, to be given to `fit` as it is
    values.yaml            the sampled values by dotted key
    state.json             its state, the reason for it, and when it was started and ended
    log.txt                what its processes printed
  sweep.csv, best.yaml   when it has ended; figures/ too
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from c2c_lightning.files import write_whole
from c2c_lightning.runs import PROGRESS_FILE, TRIAL_FILE
from c2c_lightning.sweep.trial import State, Trial

VALUES_FILE, STATE_FILE = "values.yaml", "state.json"
STATE = ("state", "reason", "starts", "ended", "stopped_at")  # of a trial, as state.json has it
ENDED: tuple[State, ...] = ("finished", "stopped", "failed")


class Ledger:
    """Reads and writes the trials of a sweep.

    Args:
        folder: of the sweep.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.trials: dict[int, Trial] = {}
        for file in sorted((folder / "trials").glob(f"*/{VALUES_FILE}")):
            self._add(int(file.parent.name), yaml.safe_load(file.read_text(encoding="utf-8")))

    def begin(self, number: int, values: dict[str, Any], config: Mapping[str, Any]) -> Trial:
        """Makes a trial's folder, or finds the one that is there."""
        if number in self.trials:
            return self.trials[number]
        folder = self._folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / TRIAL_FILE, yaml.safe_dump(dict(config), sort_keys=False))
        # Not JSON, in which the layers of a layer map would become words.
        write_whole(folder / VALUES_FILE, yaml.safe_dump(values, sort_keys=False))
        return self._add(number, values)

    def note(self, number: int, state: State, reason: str = "", stopped_at: int | None = None) -> Trial:
        """Writes down a trial's state, and reads what it has reported, which is the last time if it has ended.

        Args:
            number: of the trial.
            state: that it has now.
            reason: for the state.
            stopped_at: step of the validation by which the trial was stopped; later ones do not count.
        """
        trial = self.trials[number]
        trial.state, trial.reason, trial.stopped_at = state, reason, stopped_at
        if state == "running":
            trial.starts.append(time.time())
        trial.ended = time.time() if state in ENDED else None
        trial.progress = counted(trial)
        known = {name: getattr(trial, name) for name in STATE}
        write_whole(trial.folder / STATE_FILE, json.dumps(known) + "\n")
        return trial

    def config(self, number: int) -> dict[str, Any]:
        """The configuration that a trial was begun with, whatever has become of the base files since."""
        return yaml.safe_load((self.trials[number].folder / TRIAL_FILE).read_text(encoding="utf-8"))

    def refresh(self) -> list[Trial]:
        """All trials by number, with what those that run have reported by now."""
        for trial in self.trials.values():
            if trial.state not in ENDED:
                trial.progress = counted(trial)
        return [self.trials[number] for number in sorted(self.trials)]

    def _folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:03d}"

    def _add(self, number: int, values: dict[str, Any]) -> Trial:
        folder = self._folder(number)
        trial = Trial(number, values, folder)
        if (folder / STATE_FILE).exists():
            known = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            for name in STATE:
                setattr(trial, name, known[name])
        if trial.state not in ENDED:
            trial.state = "waiting"  # whoever ran it is gone
        trial.progress = counted(trial)
        self.trials[number] = trial
        return trial


def counted(trial: Trial) -> list[dict[str, Any]]:
    """What a trial has reported by now; of one that was stopped, up to that."""
    last = math.inf if trial.stopped_at is None else trial.stopped_at
    return [row for row in read_progress(trial.folder) if row["step"] <= last]


def read_progress(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's `progress.jsonl` by step; of a step that was done again, the later row."""
    file = folder / PROGRESS_FILE
    if not file.exists():
        return []
    rows = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # the last one may be on its way, or a kill have cut it off
            row = json.loads(line)
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]
