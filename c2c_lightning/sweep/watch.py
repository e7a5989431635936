"""What Ray Tune tells of its trials, put into the ledger, into MLflow and before the user's eyes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from c2c_lightning.errors import UserError, meant
from c2c_lightning.sweep.halving import verdict
from c2c_lightning.sweep.ledger import Ledger
from c2c_lightning.sweep.live_table import LiveTable
from c2c_lightning.sweep.process import log_tail
from c2c_lightning.sweep.settings import Sweep
from c2c_lightning.sweep.tracking import SweepTracker
from c2c_lightning.sweep.trial import State

SECONDS_BETWEEN_LOOKS = 1.0


class Watch(tune.Callback):
    """Follows the trials of a sweep.

    Args:
        sweep: its settings.
        ledger: of its trials.
        tracker: of its MLflow runs.
        table: what the user sees.
    """

    def __init__(self, sweep: Sweep, ledger: Ledger, tracker: SweepTracker, table: LiveTable):
        self.sweep, self.ledger, self.tracker, self.table = sweep, ledger, tracker, table
        self.refused: str | None = None
        self._looked = 0.0

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into a snapshot, which nobody reads here; a terminal cannot be pickled.
        return {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._note(trial, "running")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        last = trial.last_result
        if "known_metrics" in last:
            reason = missing(self.sweep.metric, last["known_metrics"])
            self._note(trial, "failed", reason)
            self.refused = f"trial {trial.config['number']}: {reason}"
        elif "refused" in last:
            self._note(trial, "failed", last["refused"])
        elif last.get("finished"):
            self._note(trial, "finished")
        else:
            reason = verdict(self.sweep.asha, last["step"], last[self.sweep.metric])
            self._note(trial, "stopped", reason, stopped_at=last["step"])

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._note(trial, "waiting", f"begun again ({trial.num_failures} of {self.sweep.retries}): {self._why(trial)}")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._note(trial, "failed", self._why(trial))

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if self.refused is not None:  # raised here, as Tune makes a traceback of what its other callbacks raise
            raise UserError(self.refused)
        if time.monotonic() - self._looked > SECONDS_BETWEEN_LOOKS:
            self._looked = time.monotonic()
            self.table.update(self.ledger.refresh())

    def _note(self, trial: TuneTrial, state: State, reason: str = "", stopped_at: int | None = None) -> None:
        self.tracker.note(self.ledger.note(trial.config["number"], state, reason, stopped_at))

    def _why(self, trial: TuneTrial) -> str:
        lines = log_tail(self.ledger.trials[trial.config["number"]].folder).strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


def missing(metric: str, known: Sequence[str]) -> str:
    """Why a trial cannot be judged, and so neither can the others.

    Args:
        metric: that trials are judged by.
        known: the metrics that it reports; none if it was trained to its end and never validated.
    """
    if known:
        hint = meant(metric, known)
        return f"metric is {metric!r}, which it did not report. {hint}{hint and ' '}It reported {', '.join(known)}."
    return (
        f"it was trained to its end and never validated, so there is no {metric} to judge it by. Let "
        "trainer.val_check_interval be no more than the steps of a trial."
    )
