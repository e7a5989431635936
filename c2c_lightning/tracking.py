"""MLflow tracking that never costs a run."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from filelock import FileLock
from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

from c2c_lightning.errors import UserError, first_line
from c2c_lightning.files import write_whole

MLFLOW_FILE = "mlflow.json"
RETRY_SECONDS = 60
MAX_METRICS = 1000  # MLflow's own limit of one request


class MLflowTracker(MLFlowLogger):
    """Lightning's MLflow logger, with a store that works out of the box and may be out of reach.

    Nothing is opened before `begin`, so that a run that is refused leaves no trace. While a tracking
    server does not answer, what it should have got is kept and tried again every minute; metrics that
    could not be delivered by the end of the run are left in `untracked_metrics.jsonl` in its folder.

    Args:
        experiment: name of the MLflow experiment.
        run_name: name of the run; None for one that MLflow makes up.
        tracking_uri: None for $MLFLOW_TRACKING_URI, or else `mlflow.db` in the working folder.
        run_id: a run to continue.
        tags: of the run.

    Raises:
        UserError: MLflow has no store for such a URI, or the store is damaged.
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
        is_file = uri.startswith("sqlite:///")
        artifacts = Path("mlartifacts").resolve().as_uri() if is_file else None
        # A new file that two processes open at once is broken for good.
        lock = FileLock(f"{uri.removeprefix('sqlite:///')}.lock") if is_file else contextlib.nullcontext()
        try:
            with lock:
                super().__init__(
                    experiment_name=experiment,
                    run_name=run_name,
                    tracking_uri=uri,
                    tags=tags,
                    run_id=run_id,
                    artifact_location=artifacts,
                )
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise UserError(f"MLflow cannot use the tracking URI {uri!r}: {first_line(error)}") from error
        self.tracking_uri = uri
        self._metrics: list[Metric] = []
        self._actions: list[Callable[[MlflowClient], Any]] = []
        self._begun = self._interrupted = False
        self._silent_until = 0.0

    @rank_zero_only
    def begin(self) -> None:
        """Opens the run, or reopens the one that is continued."""
        if not self._begun:
            self._begun = True
            self.send(lambda client: client.update_run(self._run_id, status="RUNNING"))

    @property
    def experiment(self) -> MlflowClient:
        return self._mlflow_client

    @property
    def run_id(self) -> str | None:
        """None before the run has begun, and as long as the store is out of reach."""
        return self._run_id

    @property
    def name(self) -> str:
        return self._experiment_name

    @property
    def version(self) -> str | None:
        return self._run_id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        now = int(time.time() * 1000)
        self._metrics += [Metric(key, float(value), now, step or 0) for key, value in metrics.items() if key != "epoch"]
        self._deliver()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.send(lambda client: super(MLflowTracker, self).log_hyperparams(params))

    @rank_zero_only
    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copies a file, or all that is in a folder, to the run."""
        copy = "log_artifacts" if Path(path).is_dir() else "log_artifact"
        self.send(lambda client: getattr(client, copy)(self._run_id, str(path), folder))

    @rank_zero_only
    def log_table(self, table: pd.DataFrame, path: str) -> None:
        """Keeps a table as an artifact, in the place of one of the same path."""

        def log(client: MlflowClient) -> None:
            if path in {file.path for file in client.list_artifacts(self._run_id, path.rpartition("/")[0])}:
                # MLflow would add the rows to those that are there.
                client.log_dict(self._run_id, table.to_dict(orient="split", index=False), path)
            else:
                client.log_table(self._run_id, table, path)

        self.send(log)

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        for key, value in tags.items():
            self.send(lambda client, key=key, value=value: client.set_tag(self._run_id, key, value))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        # Lightning reports an interrupted run as failed, after we have said what it was.
        if not self._begun or self._interrupted:
            return
        self._interrupted = status == "interrupted"
        self._silent_until = 0.0
        ended = {"failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED")
        self.send(lambda client: client.set_terminated(self._run_id, ended))

    @rank_zero_only
    def save_undelivered(self, folder: Path) -> None:
        """Leaves the metrics that the store never got in a file, if there are any."""
        self._silent_until = 0.0
        self._deliver()
        if self._metrics:
            file = folder / "untracked_metrics.jsonl"
            rows = [json.dumps(dict(metric)) for metric in self._metrics]
            file.write_text("\n".join(rows) + "\n", encoding="utf-8")
            rank_zero_warn(f"{len(rows)} metrics could not be delivered to MLflow; they are in {file}")

    @rank_zero_only
    def send(self, action: Callable[[MlflowClient], Any]) -> None:
        """Has something done to the store: now, or when it is back, after all that was sent before."""
        self._actions.append(action)
        self._deliver()

    def _deliver(self) -> None:
        """Sends all that waits, in order, as far as the store takes it."""
        if not self._begun or time.monotonic() < self._silent_until:
            return
        while self._actions and self._attempt(self._actions[0]):
            del self._actions[0]
        while self._metrics and not self._actions:
            part = self._metrics[:MAX_METRICS]
            if not self._attempt(lambda client, part=part: client.log_batch(self._run_id, metrics=part)):
                return
            del self._metrics[: len(part)]

    def _attempt(self, action: Callable[[MlflowClient], Any]) -> bool:
        """Whether an action is done with: it succeeded, or the store would refuse it for ever."""
        try:
            action(self._open())
        except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
            if isinstance(error, MlflowException) and 400 <= error.get_http_status_code() < 500:
                rank_zero_warn(f"MLflow at {self.tracking_uri} refused a record: {first_line(error)}")
                return True
            self._silent_until = time.monotonic() + RETRY_SECONDS
            rank_zero_warn(f"MLflow at {self.tracking_uri} is out of reach; the run goes on. ({first_line(error)})")
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


class Logged(Protocol):
    """A trainer, or whatever else has loggers."""

    loggers: Sequence[Logger]


def find_tracker(run: Logged) -> MLflowTracker | None:
    """A run's MLflow logger, if it has one."""
    return next((logger for logger in run.loggers if isinstance(logger, MLflowTracker)), None)


def note_tracking(tracker: MLflowTracker, folder: Path) -> None:
    """Leaves word of the MLflow run in a run's folder, so that it can be resumed."""
    if tracker.run_id is not None:
        where = {"tracking_uri": tracker.tracking_uri, "run_id": tracker.run_id}
        write_whole(folder / MLFLOW_FILE, json.dumps(where) + "\n")


def noted_tracking(folder: Path) -> dict[str, str]:
    """What `note_tracking` left: `tracking_uri` and `run_id`; empty if nothing."""
    file = folder / MLFLOW_FILE
    if not file.exists():
        return {}
    try:
        noted = json.loads(file.read_text(encoding="utf-8"))
        return {key: noted[key] for key in ("tracking_uri", "run_id")}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} is damaged ({first_line(error)}): remove it, and a new MLflow run is begun."
        ) from error
