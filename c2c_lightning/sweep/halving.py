"""Ray's ASHA, over the share of a trial's steps, and with the memory of a sweep that was cut off."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

from ray.tune.schedulers import AsyncHyperBandScheduler

from c2c_lightning.sweep.ledger import ENDED
from c2c_lightning.sweep.settings import Asha, Mode
from c2c_lightning.sweep.trial import Trial


def halving(asha: Asha, metric: str, mode: Mode, trials: Iterable[Trial]) -> AsyncHyperBandScheduler:
    """ASHA that knows what earlier trials reported.

    Args:
        asha: where the rungs are.
        metric: what trials are compared by.
        mode: `max` or `min`.
        trials: of the sweep so far; those that have not ended will report again.
    """
    scheduler = AsyncHyperBandScheduler(
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
            value = row["metrics"].get(metric)
            if value is not None:
                result = {"percent": 100 * row["step"] / row["max_steps"], metric: value}
                scheduler.on_trial_result(None, stand_in, result)
    return scheduler
