"""MLflow tracking that never costs a run."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from c2c_lightning.errors import UserError, first_line
from c2c_lightning.files import read_json, write_whole

MLFLOW_FILE = "mlflow.json"
RETRY_SECONDS = 60
MAX_METRICS = 1000  # MLflow's own limit of one request
MAX_FAILURES = 3
Action = Callable[[MlflowClient], Any]


class MLflowTracker(MLFlowLogger):
    """Lightning's MLflow logger, with a store that works out of the box and may be out of reach.

    Nothing is made before `begin`, so that a run that is refused leaves no trace. Whatever a store or its server
    answers, the run goes on: what was not taken is kept and tried again every minute. Artifacts wait apart from all
    else, so one that cannot be stored holds up nothing. Metrics that were not delivered by the end of the run are left
    in `untracked_metrics.jsonl` in its folder.

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
        # Of every error, also those that we warn of in one line, MLflow would log a page.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"
        self.tracking_uri = self._tracking_uri = uri
        self._file = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        self._experiment_name, self._run_name, self._run_id, self.tags = experiment, run_name, run_id, tags
        self._initialized = self._connected = False
        # MLflow makes the file at once, and a run that is refused afterwards must leave none.
        can_wait = self._file and not self._file.exists()
        if not (can_wait and self._file.parent.is_dir() and os.access(self._file.parent, os.W_OK)):
            self._connect()
        self._actions: list[Action] = []
        self._metrics: list[Metric] = []
        self._refused: list[Metric] = []  # invalid in themselves
        self._artifacts: dict[str, Action] = {}  # by name: of a file that is logged again, the last content counts
        self._folder: Path | None = None
        self._begun = self._interrupted = self._ended = False
        self._silent_until = self._artifacts_silent_until = 0.0

    @rank_zero_only
    def begin(self, folder: Path | None = None) -> None:
        """Opens the run, or reopens the one that is continued.

        In the run's folder `mlflow.json` is left as soon as MLflow's run is there, so that whoever takes the folder up
        again, after whatever end, goes on with it. A run with a folder ends with this process.
        """
        if self._begun:
            return
        self._connect()
        self._begun, self._folder = True, folder
        if folder is not None:
            atexit.register(self.finalize, "failed")  # if nothing has said how it ended
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
    def log_artifact(self, path: str | Path, folder: str | None = None, run_id: str | None = None) -> None:
        """Copies a file, or all that is in a folder, to the run, or to another one."""

        def log(client: MlflowClient) -> None:
            copy = client.log_artifacts if Path(path).is_dir() else client.log_artifact
            copy(run_id or self._run_id, str(path), folder)

        self._send_artifact(" ".join(filter(None, (run_id, folder, str(path)))), log)

    @rank_zero_only
    def log_table(self, table: pd.DataFrame, path: str) -> None:
        """Keeps a table as an artifact, in the place of one of the same path."""

        def log(client: MlflowClient) -> None:
            if path in {file.path for file in client.list_artifacts(self._run_id, path.rpartition("/")[0])}:
                # MLflow would add the rows to those that are there.
                client.log_dict(self._run_id, table.to_dict(orient="split", index=False), path)
            else:
                client.log_table(self._run_id, table, path)

        self._send_artifact(path, log)

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        for key, value in tags.items():
            self.send(lambda client, key=key, value=value: client.set_tag(self._run_id, key, value))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        # Lightning reports an interrupted run as failed, after we have said what it was.
        if not self._begun or self._interrupted or (self._ended and status == "failed"):
            return
        self._interrupted, self._ended = status == "interrupted", True
        self._silent_until = self._artifacts_silent_until = 0.0
        ended = {"failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED")
        self.send(lambda client: client.set_terminated(self._run_id, ended))

    @rank_zero_only
    def save_undelivered(self, folder: Path) -> None:
        """Leaves the metrics that the store never got in a file, if there are any."""
        self._silent_until = self._artifacts_silent_until = 0.0
        self._deliver()
        if self._artifacts:
            rank_zero_warn(f"MLflow did not take {len(self._artifacts)} files; they are in {folder}")
        rows = [json.dumps(dict(metric)) for metric in (*self._refused, *self._metrics)]
        if not rows:
            return
        file = folder / "untracked_metrics.jsonl"
        try:
            with file.open("a", encoding="utf-8") as kept:
                kept.write("\n".join(rows) + "\n")
        except OSError as error:
            rank_zero_warn(f"{len(rows)} metrics could neither be delivered to MLflow nor kept in {file}: {error}")
            return
        self._metrics, self._refused = [], []
        rank_zero_warn(f"{len(rows)} metrics could not be delivered to MLflow; they are in {file}")

    @rank_zero_only
    def send(self, action: Action) -> None:
        """Has something done to the store: now, or when it is back, after all that was sent before."""
        self._actions.append(action)
        self._deliver()

    def _send_artifact(self, name: str, action: Action) -> None:
        self._artifacts.pop(name, None)
        self._artifacts[name] = action
        self._deliver()

    def _deliver(self) -> None:
        """Sends all that waits, in order, as far as the store takes it."""
        if not self._begun or time.monotonic() < self._silent_until:
            return
        try:
            while self._actions:
                self._attempt(self._actions[0])
                del self._actions[0]
            while self._metrics:
                part = self._metrics[:MAX_METRICS]
                if not self._attempt(self._logging(part)):  # of a batch that is refused the valid ones get in singly
                    self._refused += [metric for metric in part if not self._attempt(self._logging([metric]))]
                del self._metrics[: len(part)]
        except Exception as error:  # whatever a client, driver or server makes of it
            self._silent_until = time.monotonic() + RETRY_SECONDS
            rank_zero_warn(f"MLflow at {self.tracking_uri} is out of reach; the run goes on. ({first_line(error)})")
            return
        self._deliver_artifacts()

    def _logging(self, metrics: list[Metric]) -> Action:
        return lambda client: client.log_batch(self._run_id, metrics=metrics)

    def _attempt(self, action: Action) -> bool:
        """Whether the store took it; False if it never will, because what is sent is invalid; raises otherwise."""
        try:
            action(self._open())
        except MlflowException as error:
            if error.get_http_status_code() != HTTPStatus.BAD_REQUEST:  # not 401, 403, 404: those can be mended
                raise
            rank_zero_warn(f"MLflow at {self.tracking_uri} refused a record: {first_line(error)}")
            return False
        return True

    def _deliver_artifacts(self) -> None:
        """One that fails goes to the end of the queue; where several fail in a row, all wait."""
        failures = 0
        for name, action in list(self._artifacts.items()):
            if failures == MAX_FAILURES or time.monotonic() < self._artifacts_silent_until:
                break
            del self._artifacts[name]
            try:
                action(self._open())
                failures = 0
            except Exception as error:  # also ImportError, of a storage's client
                self._artifacts[name] = action
                failures += 1
                rank_zero_warn(f"MLflow at {self.tracking_uri} cannot store {name!r} now: {first_line(error)}")
        if failures:
            self._artifacts_silent_until = time.monotonic() + RETRY_SECONDS

    def _connect(self) -> None:
        if self._connected:
            return
        artifacts = Path("mlartifacts").resolve().as_uri() if self._file else None
        # A new file that two processes open at once is broken for good.
        lock = FileLock(f"{self._file}.lock") if self._file else contextlib.nullcontext()
        settings = self._experiment_name, self._run_name, self.tracking_uri, self.tags
        try:
            with lock:
                super().__init__(*settings, run_id=self._run_id, artifact_location=artifacts)
        except Exception as error:  # also ImportError, of a database's driver
            raise UserError(f"MLflow cannot use the tracking URI {self.tracking_uri!r}: {first_line(error)}") from error
        self._connected = True

    def _open(self) -> MlflowClient:
        """The client, once the run is there; raises if the store is out of reach."""
        if self._initialized:
            return self._mlflow_client
        try:
            client = super().experiment
        except MlflowException as error:
            if self._run_id is None or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            rank_zero_warn(f"MLflow at {self.tracking_uri} has no run {self._run_id} any more: a new one is begun.")
            self._run_id = None
            client = super().experiment
        if self._folder is not None:
            note_tracking(self, self._folder)
        with contextlib.suppress(MlflowException):
            # MLflow's UI would otherwise open on its pages for prompts and traces.
            client.set_experiment_tag(self._experiment_id, "mlflow.experimentKind", "custom_model_development")
        return client


class Noted(TypedDict):
    """What `mlflow.json` holds, by which a run is continued."""

    tracking_uri: str
    run_id: str


def find_tracker(run: Any) -> MLflowTracker | None:
    """The MLflow logger among the `loggers` of a trainer or run, if it has one."""
    return next((logger for logger in run.loggers if isinstance(logger, MLflowTracker)), None)


def note_tracking(tracker: MLflowTracker, folder: Path) -> None:
    """Leaves word of the MLflow run in a run's folder, so that it can be resumed."""
    if tracker.run_id is not None:
        where = {"tracking_uri": tracker.tracking_uri, "run_id": tracker.run_id}
        write_whole(folder / MLFLOW_FILE, json.dumps(where) + "\n")


def noted_tracking(folder: Path) -> dict[str, str]:
    """What `note_tracking` left; empty if nothing."""
    file = folder / MLFLOW_FILE
    if not file.exists():
        return {}
    return read_json(file, Noted, "MLflow's note", "Remove it, and a new MLflow run is begun.")
