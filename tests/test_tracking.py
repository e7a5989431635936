"""Tracking never costs a run, and an outage costs no record."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import mlflow
import pytest

from c2c_lightning.errors import UserError
from c2c_lightning.models.loading import PROJECT
from c2c_lightning.tracking import MLflowTracker


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def server(tmp_path):
    """A port, and a function that starts MLflow's own server on it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []

    def start():
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        store = ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--workers", "1"]
        with (tmp_path / "server.log").open("wb") as log:
            processes.append(subprocess.Popen([*command, *store], stdout=log, stderr=log, start_new_session=True))
        while True:
            assert processes[-1].poll() is None, (tmp_path / "server.log").read_text()
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
            except OSError:
                time.sleep(0.2)

    yield port, start
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_server_that_comes_back_gets_all_that_it_missed(server, tmp_path):
    port, start = server
    tracker = MLflowTracker(tracking_uri=f"http://127.0.0.1:{port}")
    (tmp_path / "note.txt").write_text("kept")
    with pytest.warns(UserWarning, match="out of reach; the run goes on"):
        tracker.begin()
    tracker.log_hyperparams({"model": {"layers": "all"}})
    tracker.set_tags({"pair": "receiver <- sharer"})
    tracker.log_artifact(tmp_path / "note.txt")
    for step in range(5):
        tracker.log_metrics({"train/loss": 5.0 - step}, step)
    start()
    tracker.finalize("success")

    client = mlflow.MlflowClient(tracker.tracking_uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model/layers"] == "all"
    assert run.data.tags["pair"] == "receiver <- sharer"
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["note.txt"]
    history = client.get_metric_history(tracker.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(step, 5.0 - step) for step in range(5)]


def test_runs_that_open_a_new_store_at_once_all_get_in(tmp_path):
    code = "from c2c_lightning.tracking import MLflowTracker as T; t = T(); t.begin(); print(t.run_id)"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ids = {run.communicate()[0].strip() for run in runs}
    assert all(run.returncode == 0 for run in runs)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert {run.info.run_id for run in client.search_runs(["1"])} == ids
    assert len(ids) == 3


@pytest.mark.parametrize("uri", ["foo://x", "sqlite:///damaged.db"])
def test_a_store_that_cannot_be_used_is_refused_before_training(uri, tmp_path):
    (tmp_path / "damaged.db").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="MLflow cannot use the tracking URI"):
        MLflowTracker(tracking_uri=uri)


def test_a_run_that_never_begins_leaves_nothing(tmp_path):
    tracker = MLflowTracker()
    tracker.log_metrics({"train/loss": 1.0}, 0)
    tracker.finalize("failed")
    assert not mlflow.MlflowClient(tracker.tracking_uri).search_experiments(filter_string="name = 'c2c'")
