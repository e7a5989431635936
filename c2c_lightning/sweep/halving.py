"""Ray's ASHA, over the share of a trial's steps, and with the memory of a sweep that was cut off."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from c2c_lightning.sweep.settings import Asha, Mode
from c2c_lightning.sweep.trials import ENDED, Row, Trial

# Worse than any score, yet so that Ray can interpolate between it and one.
WORST = 1e300


class Halving:
    """Says which trials go on.

    A score that is not finite is worse than any other. Ray would compare with NaN, which is neither less nor more, and
    so would never stop such a trial.

    Args:
        asha: where the rungs are.
        metric: what trials are compared by.
        mode: `max` or `min`.
        trials: of the sweep so far; those that have not ended will report again.
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


def verdict(asha: Asha, step: int, value: float) -> str:
    """Why a trial was stopped, in words."""
    return f"at step {step}, {value:.4g} was not among the best 1/{asha.factor:g}"
