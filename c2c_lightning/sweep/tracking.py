"""The sweep in MLflow: one run for all of it, and below it one for each trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlflow.entities import Param
from mlflow.tracking import MlflowClient

from c2c_lightning.errors import UserError
from c2c_lightning.sweep.process import LOG, log_tail
from c2c_lightning.sweep.settings import Sweep
from c2c_lightning.sweep.trials import ENDED, Trial
from c2c_lightning.tracking import MLflowTracker, note_tracking, noted_tracking

LONGEST_TAG = 5000


class SweepTracker:
    """Opens the store before any trial does, and says in it what became of each.

    Args:
        folder: of the sweep; whose run is resumed if it has one.
        sweep: what it is about.
    """

    def __init__(self, folder: Path, sweep: Sweep):
        self.folder, self.sweep = folder, sweep
        self.tracker = MLflowTracker(sweep.experiment, folder.name, **noted_tracking(folder))
        self.titles: dict[int, str] = {}  # of trials whose runs do not have it yet

    def begin(self) -> None:
        """Begins the sweep's run, or resumes it."""
        known = self.tracker.run_id is not None
        self.tracker.begin(self.folder)
        if not known:
            sweep = self.sweep
            judged = {"metric": sweep.metric, "mode": sweep.mode, "search": sweep.search, "engine": sweep.engine}
            space = {key: str(spec) for key, spec in sweep.space.items()}
            self.tracker.log_hyperparams({"space": space, **judged})
            self.tracker.set_tags({"sweep": self.folder.name, "run_folder": str(self.folder.resolve())})

    def begin_trial(self, trial: Trial, title: str) -> None:
        """Begins the MLflow run that the trial's `fit` will resume.

        While the store is out of reach there is none: `fit` begins one of its own when it is back.
        """
        if not noted_tracking(trial.folder):
            with suppress(UserError):  # a store that was damaged since the sweep began
                child = MLflowTracker(self.sweep.experiment, title, self.tracker.tracking_uri)
                child.begin()
                note_tracking(child, trial.folder)
        self.titles[trial.number] = title
        self._adopt(trial)

    def _adopt(self, trial: Trial) -> None:
        """Puts a trial's run, whoever began it, below the sweep's, with title and sampled values."""
        run_id = noted_tracking(trial.folder).get("run_id")
        if run_id is None or trial.number not in self.titles:
            return
        title = self.titles.pop(trial.number)
        params = [Param(f"sweep/{key}", str(value)) for key, value in trial.values.items()]

        def write(client: MlflowClient) -> None:
            client.update_run(run_id, name=title)
            client.set_tag(run_id, "mlflow.parentRunId", self.tracker.run_id)
            client.log_batch(run_id, params=params)

        self.tracker.send(write)

    def note(self, trial: Trial) -> None:
        """Says a trial's state and the reason for it; of a failed one also what it printed last."""
        self._adopt(trial)
        run_id = noted_tracking(trial.folder).get("run_id")
        if run_id is None:
            return

        def write(client: MlflowClient) -> None:
            client.set_tag(run_id, "trial", trial.state)
            client.set_tag(run_id, "reason", trial.reason[:LONGEST_TAG])
            if trial.state == "failed":
                client.set_tag(run_id, "log", log_tail(trial.folder)[-LONGEST_TAG:])
                client.set_terminated(run_id, "FAILED")

        self.tracker.send(write)
        if trial.state in ENDED and (trial.folder / LOG).exists():
            self.tracker.log_artifact(trial.folder / LOG, run_id=run_id)

    def finish(self, metrics: Mapping[str, float], tags: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Keeps what the sweep found.

        Args:
            metrics: of the best trial.
            tags: what else is to be seen at a glance.
            files: to be kept with them.
        """
        self.tracker.log_metrics(metrics)
        self.tracker.set_tags(tags)
        self.keep(files)

    def keep(self, files: Sequence[Path], folder: str | None = None) -> None:
        """Copies files to the sweep's run, or to a folder in it."""
        for file in files:
            self.tracker.log_artifact(file, folder)

    def end(self, status: str) -> None:
        """Ends the sweep's run: `success`, `interrupted` or `failed`."""
        self.tracker.finalize(status)
        self.tracker.save_undelivered(self.folder)


@contextmanager
def tracked(folder: Path, sweep: Sweep) -> Iterator[SweepTracker]:
    """A sweep's run in MLflow, which ends with what is done here, however that ends."""
    tracker, status = SweepTracker(folder, sweep), "failed"
    try:
        tracker.begin()
        yield tracker
        status = "success"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        tracker.end(status)
