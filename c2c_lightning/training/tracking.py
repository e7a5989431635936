"""MLflow tracking that never costs a training run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

RETRY_SECONDS = 60
MAX_METRICS = 1000  # MLflow's own limit of one request


class MLflowTracker(MLFlowLogger):
    """Lightning's MLflow logger, with a store that works out of the box and may be out of reach.

    While a tracking server does not answer, metrics are kept and tried again every minute; what could
    not be delivered by the end of the run is left in `untracked_metrics.jsonl` in the run's folder.
    Tags and artifacts of that time are lost to MLflow; all of them are in the run's folder too.

    Args:
        experiment: name of the MLflow experiment.
        run_name: name of the run; None for one that MLflow makes up.
        tracking_uri: None for $MLFLOW_TRACKING_URI, or else `mlflow.db` in the working folder.
        run_id: a run to continue.
        tags: of the run.
    """

    def __init__(
        self,
        experiment: str = "c2c",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        run_id: str | None = None,
        tags: dict[str, Any] | None = None,
    ):
        # A training step should not wait for minutes on a server that is gone.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"
        artifacts = Path("mlartifacts").resolve().as_uri() if uri.startswith("sqlite:") else None
        super().__init__(
            experiment_name=experiment,
            run_name=run_name,
            tracking_uri=uri,
            tags=tags,
            run_id=run_id,
            artifact_location=artifacts,
        )
        self.tracking_uri = uri
        self._undelivered: list[Metric] = []
        self._silent_until = 0.0
        self._interrupted = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        now = int(time.time() * 1000)
        self._undelivered += [
            Metric(key, float(value), now, step or 0) for key, value in metrics.items() if key != "epoch"
        ]
        self._deliver()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.attempt(lambda: super(MLflowTracker, self).log_hyperparams(params))

    @rank_zero_only
    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copies a file, or all that is in a folder, to the run."""
        path = Path(path)
        if path.is_dir():
            self.attempt(lambda: self._open().log_artifacts(self._run_id, str(path), folder))
        else:
            self.attempt(lambda: self._open().log_artifact(self._run_id, str(path), folder))

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        for key, value in tags.items():
            self.attempt(lambda key=key, value=value: self._open().set_tag(self._run_id, key, value))

    @property
    def experiment(self) -> MlflowClient:
        self.attempt(self._open)
        return self._mlflow_client

    @property
    def run_id(self) -> str | None:
        """None as long as the store is out of reach."""
        self.attempt(self._open)
        return self._run_id

    @property
    def name(self) -> str:
        return self._experiment_name

    @property
    def version(self) -> str | None:
        return self._run_id

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        # Lightning reports an interrupted run as failed, after we have said what it was.
        if not self._initialized or self._interrupted:
            return
        self._interrupted = status == "interrupted"
        self._silent_until = 0.0
        self._deliver()
        ended = {"failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED")
        self.attempt(lambda: self._open().set_terminated(self._run_id, ended))

    @rank_zero_only
    def save_undelivered(self, folder: Path) -> None:
        """Leaves what the store never got in a file, if there is any."""
        self._silent_until = 0.0
        self._deliver()
        if self._undelivered:
            file = folder / "untracked_metrics.jsonl"
            rows = [json.dumps(dict(metric)) for metric in self._undelivered]
            file.write_text("\n".join(rows) + "\n", encoding="utf-8")
            rank_zero_warn(f"{len(rows)} metrics could not be delivered to MLflow; they are in {file}")

    def attempt(self, action: Callable[[], Any]) -> bool:
        """Does something with the store; warns and goes on if it is out of reach."""
        if time.monotonic() < self._silent_until:
            return False
        try:
            action()
        except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
            self._silent_until = time.monotonic() + RETRY_SECONDS
            reason = str(error).strip().splitlines()[0][:200]
            rank_zero_warn(f"MLflow at {self.tracking_uri} is out of reach; training goes on. ({reason})")
            return False
        return True

    def _open(self) -> MlflowClient:
        """The client, once the run is there; raises if the store is out of reach."""
        fresh = not self._initialized
        client = super().experiment
        if fresh:
            # MLflow's UI would otherwise open on its pages for prompts and traces.
            client.set_experiment_tag(self._experiment_id, "mlflow.experimentKind", "custom_model_development")
        return client

    def _deliver(self) -> None:
        while self._undelivered:
            part = self._undelivered[:MAX_METRICS]
            if not self.attempt(lambda part=part: self._open().log_batch(self._run_id, metrics=part)):
                return
            del self._undelivered[: len(part)]


def find_tracker(trainer: L.Trainer) -> MLflowTracker | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, MLflowTracker)), None)
