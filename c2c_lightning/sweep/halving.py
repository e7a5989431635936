"""Ray's ASHA, over the share of a trial's steps, and with the memory of a sweep that was cut off."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from c2c_lightning.sweep.ledger import ENDED
from c2c_lightning.sweep.settings import Asha, Mode
from c2c_lightning.sweep.trial import Trial

# Worse than any score, yet so that Ray can interpolate between it and one.
WORST = 1e300


class Halving(AsyncHyperBandScheduler):
    """ASHA for which a score that is not finite is worse than any other.

    Ray's own compares with NaN, which is neither less nor more, and so would never stop such a trial.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.not_finite = 0

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return super().on_trial_result(tune_controller, trial, self._comparable(result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, self._comparable(result))

    def _comparable(self, result: dict[str, Any]) -> dict[str, Any]:
        if math.isfinite(result.get(self._metric, 0.0)):
            return result
        # Each is worse than the one before it: where most are alike, none would be below the others.
        self.not_finite += 1
        return {**result, self._metric: -self._metric_op * WORST * self.not_finite}


def halving(asha: Asha, metric: str, mode: Mode, trials: Iterable[Trial]) -> Halving:
    """ASHA that knows what earlier trials reported.

    Args:
        asha: where the rungs are.
        metric: what trials are compared by.
        mode: `max` or `min`.
        trials: of the sweep so far; those that have not ended will report again.
    """
    scheduler = Halving(
        time_attr="percent",
        metric=metric,
        mode=mode,
        max_t=100,
        grace_period=100 * asha.grace,
        reduction_factor=asha.factor,
    )
    for trial in trials:
        if trial.state not in ENDED:
            continue
        stand_in = SimpleNamespace(trial_id=f"earlier {trial.name}")
        scheduler.on_trial_add(None, stand_in)
        for row in trial.progress:
            if metric in row["metrics"]:
                value = row["metrics"][metric]
                result = {
                    "percent": 100 * row["step"] / row["max_steps"],
                    metric: math.nan if value is None else value,
                }
                scheduler.on_trial_result(None, stand_in, result)
    return scheduler


def verdict(asha: Asha, step: int, value: float) -> str:
    """Why a trial was stopped, in words."""
    return f"at step {step}, {value:.4g} was not among the best 1/{asha.factor:g}"
