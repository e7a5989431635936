"""What a sweep found, as files: every trial in a table, and the best one's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from c2c_lightning.files import write_whole
from c2c_lightning.runs import TRIAL_FILE
from c2c_lightning.sweep.labels import shown_score
from c2c_lightning.sweep.settings import Mode
from c2c_lightning.sweep.space import label
from c2c_lightning.sweep.trials import Trial

CSV_FILE, BEST_FILE = "sweep.csv", "best.yaml"


def ranking(trials: Sequence[Trial], metric: str, mode: Mode) -> list[Trial]:
    """Trials that ended with a score, the best first.

    Finished ones come before those that were stopped early, whose scores are of fewer steps. Of equals the one
    with fewer open layers is first, then the one that was begun first.

    Args:
        trials: in any order and state.
        metric: what to judge by, at the last validation.
        mode: whether more of it is better.
    """
    sign = -1 if mode == "max" else 1
    scored = [trial for trial in trials if trial.has_score(metric)]
    return sorted(scored, key=lambda t: (t.state == "stopped", sign * t.score(metric), t.num_open, t.number))


def best_trial(trials: Sequence[Trial], metric: str, mode: Mode) -> Trial | None:
    """The first of the `ranking`: a trial that was stopped early only if none finished; None if none has a score."""
    return next(iter(ranking(trials, metric, mode)), None)


def write_csv(trials: Sequence[Trial], folder: Path) -> Path:
    """Writes `sweep.csv`: a row for each trial with sampled values, state, open layers and its last metrics.

    Lists and mappings are YAML in one line; `seconds` is training time, pauses aside.
    """
    rows = [
        {
            "trial": trial.number,
            **{key: label(value) for key, value in trial.values.items()},
            "state": trial.state,
            "reason": trial.reason,
            "step": trial.step,
            "seconds": trial.seconds,
            "open_layers": trial.num_open,
            **(trial.progress[-1]["metrics"] if trial.progress else {}),
            "run_id": trial.run_id,
            "folder": str(trial.folder),
        }
        for trial in trials
    ]
    # Trials that report later have columns of their own: keep these in front of where a run is to be found.
    last = ["run_id", "folder"]
    table = pd.DataFrame(rows)
    table = table[[column for column in table.columns if column not in last] + last]
    write_whole(folder / CSV_FILE, table.to_csv(index=False))
    return folder / CSV_FILE


def write_best(trial: Trial, metric: str, folder: Path) -> Path:
    """Writes `best.yaml`: the configuration that a trial was trained with, ready for `fit --config best.yaml`.

    It is a copy of the trial's own, and not merged anew: a base file may have been edited since.

    Args:
        trial: the best.
        metric: what it was judged by.
        folder: of the sweep.
    """
    score = shown_score(trial.score(metric), metric)
    says = f"# The best of sweep {folder.name}: trial {trial.name}, {metric} {score} at step {trial.step}.\n"
    write_whole(folder / BEST_FILE, says + (trial.folder / TRIAL_FILE).read_text(encoding="utf-8"))
    return folder / BEST_FILE
