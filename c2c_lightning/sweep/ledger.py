"""A sweep's trials on disk: the one place where it stands what was tried and what became of it.

runs/sweeps/<name>/
  sweep.yaml             the sweep as it was begun
  optuna.journal         the search
  trials/<number>/       the folder of an ordinary run, and
    trial.yaml             its configuration, to be given to `fit` as it is
    values.json            the sampled values by dotted key
    state.json             its state, the reason for it, and when it began and ended
    log.txt                what its processes printed
  sweep.csv, best.yaml   when it has ended; figures/ too
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from c2c_lightning.runs import PROGRESS_FILE, TRIAL_FILE, write_whole
from c2c_lightning.sweep.trial import State, Trial

VALUES_FILE, STATE_FILE = "values.json", "state.json"
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
            self._add(int(file.parent.name), json.loads(file.read_text(encoding="utf-8")))

    def begin(self, number: int, values: dict[str, Any], config: Mapping[str, Any]) -> Trial:
        """Makes a trial's folder, or finds the one that is there."""
        if number in self.trials:
            return self.trials[number]
        folder = self._folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / TRIAL_FILE, yaml.safe_dump(dict(config), sort_keys=False))
        write_whole(folder / VALUES_FILE, json.dumps(values))
        return self._add(number, values)

    def note(self, number: int, state: State, reason: str = "") -> Trial:
        """Writes down a trial's state, and reads what it has reported, which is the last time if it has ended."""
        trial = self.trials[number]
        trial.progress = read_progress(trial.folder)
        trial.state, trial.reason = state, reason
        if state == "running" and trial.begun is None:
            trial.begun = time.time()
        trial.ended = time.time() if state in ENDED else None
        known = {"state": state, "reason": reason, "begun": trial.begun, "ended": trial.ended}
        write_whole(trial.folder / STATE_FILE, json.dumps(known) + "\n")
        return trial

    def refresh(self) -> list[Trial]:
        """All trials by number, with what those that run have reported by now."""
        for trial in self.trials.values():
            if trial.state not in ENDED:
                trial.progress = read_progress(trial.folder)
        return [self.trials[number] for number in sorted(self.trials)]

    def _folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:03d}"

    def _add(self, number: int, values: dict[str, Any]) -> Trial:
        folder = self._folder(number)
        trial = Trial(number, values, folder, progress=read_progress(folder))
        if (folder / STATE_FILE).exists():
            for name, value in json.loads((folder / STATE_FILE).read_text(encoding="utf-8")).items():
                setattr(trial, name, value)
        if trial.state not in ENDED:
            trial.state = "waiting"  # whoever ran it is gone
        self.trials[number] = trial
        return trial


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
