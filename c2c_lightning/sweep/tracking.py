"""The sweep in MLflow: one run for all of it, and below it one for each trial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from c2c_lightning.sweep.ledger import ENDED
from c2c_lightning.sweep.process import LOG, log_tail
from c2c_lightning.sweep.settings import Sweep
from c2c_lightning.sweep.trial import Trial
from c2c_lightning.tracking import MLflowTracker, note_tracking, noted_tracking

LONGEST_TAG = 5000


class SweepTracker:
    """Opens the store before any trial does, and says in it what became of each.

    Args:
        folder: of the sweep; whose run is gone on with if it has one.
        sweep: what it is about.
    """

    def __init__(self, folder: Path, sweep: Sweep):
        self.experiment = sweep.experiment
        self.tracker = MLflowTracker(sweep.experiment, folder.name, **noted_tracking(folder))
        known = self.tracker.run_id is not None
        self.tracker.begin()
        note_tracking(self.tracker, folder)
        if not known:
            judged = {"metric": sweep.metric, "mode": sweep.mode, "search": sweep.search, "engine": sweep.engine}
            space = {key: str(spec) for key, spec in sweep.space.items()}
            self.tracker.log_hyperparams({"space": space, **judged})
            self.tracker.set_tags({"sweep": folder.name, "run_folder": str(folder.resolve())})

    def begin_trial(self, trial: Trial, title: str) -> None:
        """Begins the MLflow run that the trial's `fit` will go on with."""
        if noted_tracking(trial.folder):
            return
        parent = self.tracker.run_id
        tags = {"mlflow.parentRunId": parent} if parent else {}
        child = MLflowTracker(self.experiment, title, self.tracker.tracking_uri, tags=tags)
        child.begin()
        child.log_hyperparams({"sweep": {key: str(value) for key, value in trial.values.items()}})
        note_tracking(child, trial.folder)

    def note(self, trial: Trial) -> None:
        """Says a trial's state and the reason for it; of a failed one also what it printed last."""
        run_id = noted_tracking(trial.folder).get("run_id")
        if run_id is None:
            return

        def write(client: MlflowClient) -> None:
            client.set_tag(run_id, "trial", trial.state)
            client.set_tag(run_id, "reason", trial.reason[:LONGEST_TAG])
            if trial.state == "failed":
                client.set_tag(run_id, "log", log_tail(trial.folder)[-LONGEST_TAG:])
                client.set_terminated(run_id, "FAILED")
            if trial.state in ENDED and (trial.folder / LOG).exists():
                client.log_artifact(run_id, str(trial.folder / LOG))

        self.tracker.do(write)

    def finish(self, metrics: Mapping[str, float], tags: Mapping[str, Any], files: Mapping[str, list[Path]]) -> None:
        """Keeps what the sweep found.

        Args:
            metrics: of the best trial.
            tags: what else is to be seen at a glance.
            files: by folder in the run.
        """
        self.tracker.log_metrics(metrics)
        self.tracker.set_tags(tags)
        for folder, paths in files.items():
            for path in paths:
                self.tracker.log_artifact(path, folder or None)

    def end(self, folder: Path, status: str) -> None:
        """Ends the sweep's run: `success`, `interrupted` or `failed`."""
        self.tracker.finalize(status)
        self.tracker.save_undelivered(folder)
