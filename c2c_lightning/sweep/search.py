"""Optuna's search as Ray Tune asks for it.

Ray's own OptunaSearch keeps its study in the driver's memory, and after a kill knows as much as the last snapshot.
Here the study is a journal on disk, written before a trial begins; so a sweep that is resumed learns from all that
was tried, and resumes the very trials that were cut off.

The study is told of trials that were judged: that finished, or that the rule stopped. One that failed stays open in it,
as one that was cut off does, for Optuna can reopen none: so it is tried again when the sweep is resumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from c2c_lightning.sweep.settings import Mode, Sweep
from c2c_lightning.sweep.space import Space

JOURNAL = "optuna.journal"
STUDY = "sweep"


def open_study(folder: Path, sweep: Sweep, space: Space) -> optuna.Study:
    """The study in a sweep's folder, begun if there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        study_name=STUDY,
        direction="maximize" if sweep.mode == "max" else "minimize",
        load_if_exists=True,
    )
    # Optuna's own GridSampler cannot be asked for one trial after the other.
    points = space.grid() if sweep.search == "grid" else sweep.first
    for point in points[len(study.trials) :]:  # a kill may have come in between
        study.enqueue_trial(space.encode(point))
    begun = sum(trial.state != TrialState.WAITING for trial in study.trials)
    # A sampler that is made anew would draw the same again.
    study.sampler = _sampler(sweep, sweep.seed + begun)
    return study


def _sampler(sweep: Sweep, seed: int) -> optuna.samplers.BaseSampler:
    if sweep.search != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    # A third at random, ten at most; trials that still run count as bad, so that neighbours are not tried at once.
    at_random = min(10, max(3, (sweep.trials or 0) // 3))
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=at_random, constant_liar=True)


class StudySearch(Searcher):
    """Hands out first the study's trials that were cut off or failed, then what its sampler suggests.

    Args:
        study: of the sweep.
        space: of the sweep.
        trials: how many there are to be in all.
        prepare: called with number and values of a trial before it begins; returns Ray's configuration of it.
        metric: what the trials report.
        mode: `max` or `min`.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        trials: int,
        prepare: Callable[[int, dict[str, Any]], dict[str, Any]],
        metric: str,
        mode: Mode,
    ):
        super().__init__(metric=metric, mode=mode)
        self.study, self.space, self.trials, self.prepare = study, space, trials, prepare
        self.open: list[FrozenTrial] = study.get_trials(states=(TrialState.RUNNING,))
        self.asked: dict[str, optuna.Trial] = {}

    def left(self) -> int:
        """Trials that are still to be run."""
        begun = [trial for trial in self.study.trials if trial.state != TrialState.WAITING]
        return max(0, self.trials - len(begun)) + len(self.open)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if self.open:
            trial = reopened(self.study, self.open.pop(0))
        elif self.left():
            trial = self.study.ask()
        else:
            return Searcher.FINISHED
        self.asked[trial_id] = trial
        return self.prepare(trial.number, self.space.sample(trial))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self.metric in result:
            report(self.asked[trial_id], result["step"], result[self.metric])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if not error and result is not None and self.metric in result:  # otherwise it failed
            tell(self.asked[trial_id], bool(result.get("finished")), result["step"], result[self.metric])

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed from its folder, not from Ray's snapshots")


def reopened(study: optuna.Study, frozen: FrozenTrial) -> optuna.Trial:
    """A trial that has not ended, to be reported of again."""
    return optuna.Trial(study, frozen._trial_id)


def report(trial: optuna.Trial, step: int, value: float) -> None:
    """Reports a validation, unless it was reported: a trial that is resumed reports again from its beginning."""
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    if step not in known:
        trial.report(value, step)


def tell(trial: optuna.Trial, finished: bool, step: int, value: float) -> None:
    """Tells a trial's study how it ended.

    Args:
        trial: that has not ended in the study.
        finished: and not stopped.
        step: of its last validation.
        value: of the metric there. If it is not finite, the trial counts as a bad one that was stopped.
    """
    if finished and math.isfinite(value):
        trial.study.tell(trial, value)
    else:  # the sampler learns from the last value, and from how far the trial came
        report(trial, step, value)
        trial.study.tell(trial, state=TrialState.PRUNED)
