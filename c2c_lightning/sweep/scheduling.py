"""Which trials run when, and what becomes of them when they report, end, crash or lose their machine.

Ray only executes: nothing of its state is needed again, and a sweep that is resumed rebuilds all from its study.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from types import SimpleNamespace

from ray.exceptions import RayError, RayTaskError
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from c2c_lightning.errors import UserError, first_line, meant
from c2c_lightning.runs import STOP_FILE, SUMMARY_FILE
from c2c_lightning.sweep.configuration import sharable_key
from c2c_lightning.sweep.live_table import LiveTable
from c2c_lightning.sweep.process import SECONDS_TO_STOP, add_to_log, log_tail
from c2c_lightning.sweep.runner import Group, origin
from c2c_lightning.sweep.settings import Asha, Mode
from c2c_lightning.sweep.tracking import SweepTracker
from c2c_lightning.sweep.trials import ENDED, Row, State, Trial, Trials

POLL = 0.2
SECONDS_BETWEEN_LOOKS = 1.0
# A trial that loses its machine so often costs no retry; more often, the trial itself may be what kills it.
MOST_LOST = 10
# Worse than any score, yet so that Ray can interpolate between it and one.
WORST = 1e300


class Scheduler:
    """Runs what is left of a sweep, whose trials are resumed, in so many training processes at once."""

    def __init__(self, trials: Trials, tracker: SweepTracker, table: LiveTable, processes: int):
        self.sweep, self.trials, self.tracker, self.table = trials.sweep, trials, tracker, table
        self.processes = processes
        self.together = self.sweep.together if self.sweep.engine == "shared" else 1
        self.asha: Halving | None = None
        if self.sweep.asha is not None:
            self.asha = Halving(self.sweep.asha, self.sweep.metric, self.sweep.mode, trials.known.values())
        self.waiting: list[tuple[str, Trial]] = []  # with what tells which trials may share a process
        self.groups: list[Group] = []
        self.reported: dict[int, int] = {}  # trial: step of the last row that was judged
        self.retried: Counter[int] = Counter()
        self.lost: Counter[int] = Counter()
        self._looked = 0.0

    def step(self) -> bool:
        """Begins what there is room for, and follows what runs; returns whether anything is left to do."""
        self.fill()
        wait([group.ended for group in self.groups], POLL, FIRST_COMPLETED)
        for group in list(self.groups):
            self.follow(group)
        if time.monotonic() - self._looked > SECONDS_BETWEEN_LOOKS:
            self._looked = time.monotonic()
            self.table.show(self.trials.refresh())
        return bool(self.groups or self.waiting or self.trials.left())

    def end(self) -> None:
        """Stops what runs and waits until it has saved; a trial that has not ended waits for the sweep to be resumed."""
        try:
            for group in self.groups:
                group.stop()
            wait([group.ended for group in self.groups if group.begun.done()], SECONDS_TO_STOP)
        finally:
            for group in self.groups:
                group.close()
            for trial in self.trials.unended():
                self.note(trial, "waiting", trial.reason)

    def fill(self) -> None:
        """Asks for as many trials as the processes take, and begins groups of those that may share one."""
        active = len(self.waiting) + sum(trial.state not in ENDED for group in self.groups for trial in group.trials)
        while active < self.processes * self.together and (trial := self.trials.next()):
            self.tracker.begin_trial(trial)
            self.add(trial)
            active += 1
        while self.waiting and len(self.groups) < self.processes:
            key = self.waiting[0][0]
            trials = [trial for other, trial in self.waiting if other == key][: self.together]
            self.waiting = [(other, trial) for other, trial in self.waiting if trial not in trials]
            self.groups.append(self.start(trials))

    def start(self, trials: Sequence[Trial]) -> Group:
        return Group(trials, self.sweep.resources)

    def add(self, trial: Trial) -> None:
        """Puts a trial among those that wait."""
        key = trial.name
        if self.together > 1 and not trial.alone:
            key = sharable_key(trial.config()) + origin(trial.folder)
        self.waiting.append((key, trial))

    def follow(self, group: Group) -> None:
        """Notes what has become of a group's trials since the last time."""
        # Asked before the last rows are read, or one that came in between would be missed.
        ended = group.ended.done()
        for trial in group.trials:
            if trial.state == "waiting" and group.begun.done():
                self.note(trial, "running")
            if trial.state == "running":
                self.judge(trial, group)
        if ended:
            self.groups.remove(group)
            group.close()
            self.settle(group)

    def judge(self, trial: Trial, group: Group) -> None:
        """Reads a trial's new rows, and stops it at one with which it is not among the best; others of its group go on."""
        trial.refresh()
        for row in trial.progress:
            if row["step"] <= self.reported.get(trial.number, -1):
                continue
            self.reported[trial.number] = row["step"]
            if self.sweep.metric not in row["metrics"]:
                self.refuse(trial, missing(self.sweep.metric, sorted(row["metrics"])))
            # The last validation is not the end: the fuser is still to be exported.
            if row["step"] < row["max_steps"] and self.asha is not None and self.asha.stops(trial.name, row):
                value = row["metrics"][self.sweep.metric]
                shown = f"{math.nan if value is None else value:.4g}"
                reason = f"at step {row['step']}, {shown} was not among the best 1/{self.sweep.asha.factor:g}"
                self.note(trial, "stopped", reason, row["step"])
                if len(group.trials) == 1:
                    group.stop()
                else:
                    (trial.folder / STOP_FILE).touch()
                return

    def settle(self, group: Group) -> None:
        """Says what has become of trials whose process has ended."""
        error = group.ended.exception()
        folders = {trial.number: str(trial.folder.resolve()) for trial in group.trials}
        trained = list(folders.values()) if error is not None else group.ended.result()
        for trial in group.trials:
            if trial.state in ENDED:
                continue
            # A process that was asked to stop may also exit with 0: the summary says that it came to its end.
            if (trial.folder / SUMMARY_FILE).exists():
                self.finish(trial)
            elif isinstance(error, RayError) and not isinstance(error, RayTaskError):
                reason = f"its machine was lost: {first_line(error)}"
                self.lost[trial.number] += 1
                if self.lost[trial.number] > MOST_LOST:
                    self.note(trial, "failed", reason)
                else:
                    self.requeue(trial, reason)
            elif folders[trial.number] not in trained:  # its process was to be another
                self.requeue(trial, trial.reason)
            else:
                if error is not None:
                    add_to_log(trial.folder, "".join(traceback.format_exception(error)))
                self.crash(trial, len(trained) == 1)

    def finish(self, trial: Trial) -> None:
        trial.refresh()
        if not trial.progress:
            self.refuse(trial, missing(self.sweep.metric, []))
        if self.asha is not None:
            self.asha.stops(trial.name, trial.progress[-1])
        self.note(trial, "finished")

    def crash(self, trial: Trial, alone: bool) -> None:
        """Begins a trial again whose process ended without a result, as often as the sweep allows."""
        lines = log_tail(trial.folder).strip().splitlines() or ["it ended without a word"]
        refusals = [line for line in lines[-5:] if line.startswith("error: ")]
        if not alone:  # any of the group may have been the cause, so none is charged for it
            trial.alone = True
            self.requeue(trial, f"begun again by itself, as its group crashed: {lines[-1]}")
        elif refusals:  # by us, and would be again
            self.note(trial, "failed", refusals[-1].removeprefix("error: "))
        elif self.retried[trial.number] < self.sweep.retries:
            self.retried[trial.number] += 1
            count = f"{self.retried[trial.number]} of {self.sweep.retries}"
            self.requeue(trial, f"begun again ({count}): {lines[-1]}")
        else:
            self.note(trial, "failed", lines[-1])

    def requeue(self, trial: Trial, reason: str) -> None:
        self.note(trial, "waiting", reason)
        self.add(trial)

    def refuse(self, trial: Trial, reason: str) -> None:
        """Ends the sweep over a trial that cannot be judged, as the others cannot be either."""
        self.note(trial, "failed", reason)
        raise UserError(f"trial {trial.number}: {reason}")

    def note(self, trial: Trial, state: State, reason: str = "", stopped_at: int | None = None) -> None:
        self.tracker.note(self.trials.note(trial, state, reason, stopped_at))
        self.table.show(self.trials.refresh())


class Halving:
    """Says which trials go on, by Ray's ASHA over the share of a trial's steps.

    A score that is not finite is worse than any other. Ray would compare with NaN, which is neither less nor more, and
    so would never stop such a trial. Of the sweep's trials so far, those that have not ended will report again.
    """

    def __init__(self, asha: Asha, metric: str, mode: Mode, trials: Iterable[Trial] = ()):
        self.metric, self.worst = metric, -WORST if mode == "max" else WORST
        self.not_finite = 0
        self.trials: dict[str, SimpleNamespace] = {}
        self.scheduler = AsyncHyperBandScheduler(
            time_attr="percent",
            metric="score",
            mode=mode,
            max_t=100,
            grace_period=100 * asha.grace,
            reduction_factor=asha.factor,
            stop_last_trials=False,  # the last validation counts at the rungs before it
        )
        for trial in trials:
            if trial.state in ENDED:
                for row in trial.progress:
                    self.stops(trial.name, row)

    def stops(self, name: str, row: Row) -> bool:
        """Takes note of a validation; returns whether its trial is stopped by it."""
        if self.metric not in row["metrics"]:
            return False
        if name not in self.trials:
            self.trials[name] = SimpleNamespace(trial_id=name)  # all that Ray's scheduler asks of a trial
            self.scheduler.on_trial_add(None, self.trials[name])
        score = row["metrics"][self.metric]
        if score is None or not math.isfinite(score):
            # Each is worse than the one before it: where most are alike, none would be below the others.
            self.not_finite += 1
            score = self.worst * self.not_finite
        result = {"percent": 100 * row["step"] / row["max_steps"], "score": score}
        return self.scheduler.on_trial_result(None, self.trials[name], result) == TrialScheduler.STOP


def missing(metric: str, known: Sequence[str]) -> str:
    """Why a trial cannot be judged by a metric: it reports others, or none, as it never validated."""
    if known:
        hint = meant(metric, known)
        return f"metric is {metric!r}, which it did not report. {hint}{hint and ' '}It reported {', '.join(known)}."
    return (
        f"it was trained to its end and never validated, so there is no {metric} to judge it by. Let "
        "trainer.val_check_interval be no more than the steps of a trial."
    )
