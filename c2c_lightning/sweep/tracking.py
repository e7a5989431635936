"""The sweep in MLflow: one run for all of it, and below it one for each trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow.entities import Param
from mlflow.tracking import MlflowClient

from c2c_lightning.errors import UserError
from c2c_lightning.sweep.labels import title
from c2c_lightning.sweep.process import LOG, log_tail
from c2c_lightning.sweep.settings import Sweep
from c2c_lightning.sweep.trials import ENDED, Trial
from c2c_lightning.tracking import MLflowTracker, note_tracking, noted_tracking

LONGEST_TAG = 5000


@contextmanager
def tracked(folder: Path, sweep: Sweep) -> Iterator[SweepTracker]:
    """A sweep's run in MLflow, begun or resumed, which ends with what is done here, however that ends."""
    tracker, status = SweepTracker(folder, sweep), "failed"
    is_new = tracker.run_id is None
    try:
        tracker.begin(folder)
        if is_new:
            judged = {"metric": sweep.metric, "mode": sweep.mode, "search": sweep.search, "engine": sweep.engine}
            space = {key: str(spec) for key, spec in sweep.space.items()}
            tracker.log_hyperparams({"space": space, **judged})
            tracker.set_tags({"sweep": folder.name, "run_folder": str(folder.resolve())})
        yield tracker
        status = "success"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        tracker.finalize(status)
        tracker.save_undelivered(folder)


class SweepTracker(MLflowTracker):
    """The sweep's run: opens the store before any trial does, and says in it what became of each."""

    def __init__(self, folder: Path, sweep: Sweep):
        super().__init__(sweep.experiment, folder.name, **noted_tracking(folder))
        self.untitled: set[int] = set()  # trials whose runs are not below the sweep's yet

    def begin_trial(self, trial: Trial) -> None:
        """Begins the MLflow run that the trial's `fit` will resume.

        While the store is out of reach there is none: `fit` begins one of its own when it is back.
        """
        if not noted_tracking(trial.folder):
            with suppress(UserError):  # a store that was damaged since the sweep began
                child = MLflowTracker(self.name, title(trial), self.tracking_uri)
                child.begin()
                note_tracking(child, trial.folder)
        self.untitled.add(trial.number)
        self._adopt(trial)

    def _adopt(self, trial: Trial) -> str | None:
        """Puts a trial's run, whoever began it, below the sweep's, with title and sampled values; returns its id."""
        run_id = noted_tracking(trial.folder).get("run_id")
        if run_id is not None and trial.number in self.untitled:
            self.untitled.remove(trial.number)

            def write(client: MlflowClient) -> None:
                client.update_run(run_id, name=title(trial))
                client.set_tag(run_id, "mlflow.parentRunId", self.run_id)
                params = [Param(f"sweep/{key}", str(value)) for key, value in trial.values.items()]
                client.log_batch(run_id, params=params)

            self.send(write)
        return run_id

    def note(self, trial: Trial) -> None:
        """Says a trial's state and the reason for it; of a failed one also what it printed last."""
        run_id = self._adopt(trial)
        if run_id is None:
            return
        state, reason = trial.state, trial.reason  # which may be others when the store is back

        def write(client: MlflowClient) -> None:
            client.set_tag(run_id, "trial", state)
            client.set_tag(run_id, "reason", reason[:LONGEST_TAG])
            if state == "failed":
                client.set_tag(run_id, "log", log_tail(trial.folder)[-LONGEST_TAG:])
                client.set_terminated(run_id, "FAILED")

        self.send(write)
        if state in ENDED and (trial.folder / LOG).exists():
            self.log_artifact(trial.folder / LOG, run_id=run_id)
