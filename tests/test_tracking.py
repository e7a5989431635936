"""Tracking never costs a run, and an outage costs no record."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import mlflow
import pandas as pd
import pytest

from c2c_lightning.errors import UserError
from c2c_lightning.files import PROJECT
from c2c_lightning.tracking import MLflowTracker, noted_tracking


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A database with MLflow's tables, which take seconds to make."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
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
        store = ["--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}", "--workers", "1"]
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "uri", ["foo://x", "sqlite:///damaged.db", "sqlite:///damaged.db/x.db", "postgresql://nobody@localhost/x"]
)
def test_a_store_that_cannot_be_used_is_refused_before_training(uri, tmp_path):
    (tmp_path / "damaged.db").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="MLflow cannot use the tracking URI"):
        MLflowTracker(tracking_uri=uri)


def test_a_run_that_never_begins_leaves_nothing(tmp_path):
    (tmp_path / "mlflow.db").unlink()
    tracker = MLflowTracker()
    tracker.log_metrics({"train/loss": 1.0}, 0)
    tracker.finalize("failed")
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=[401, 403, 404, 500])
def unwilling(request):
    """The URI of a server that gives one answer to everything."""

    class Answer(BaseHTTPRequestHandler):
        def answer(self):
            self.send_response(request.param)
            self.end_headers()

        do_GET = do_POST = do_PATCH = do_PUT = answer

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def untracked(folder):
    return [json.loads(line) for line in (folder / "untracked_metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:.*MLflow")
def test_a_server_that_refuses_everything_costs_no_metric(unwilling, tmp_path):
    tracker = MLflowTracker(tracking_uri=unwilling)
    tracker.begin(tmp_path)
    tracker.log_hyperparams({"layers": "all"})
    tracker.log_metrics({"train/loss": 1.0}, 0)
    tracker.log_metrics({"train/loss": 0.5}, 1)
    tracker.save_undelivered(tmp_path)
    tracker.finalize("success")
    assert [(row["key"], row["step"], row["value"]) for row in untracked(tmp_path)] == [
        ("train/loss", 0, 1.0),
        ("train/loss", 1, 0.5),
    ]


@pytest.mark.filterwarnings("ignore:.*MLflow")
def test_an_artifact_that_cannot_be_stored_holds_up_nothing(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    client.create_experiment("c2c", artifact_location="s3://bucket/path")  # boto3 is no dependency
    (tmp_path / "note.txt").write_text("kept")
    tracker = MLflowTracker(tracking_uri=uri)
    tracker.begin(tmp_path)
    tracker.log_artifact(tmp_path / "note.txt")
    tracker.log_table(pd.DataFrame({"a": [1]}), "tables/a.json")
    tracker.log_metrics({"train/loss": 1.0}, 0)
    tracker.save_undelivered(tmp_path)
    tracker.finalize("success")
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"train/loss": 1.0}
    assert not (tmp_path / "untracked_metrics.jsonl").exists()


@pytest.mark.filterwarnings("ignore:.*MLflow")
def test_a_file_that_is_gone_holds_up_no_other(tmp_path):
    tracker = MLflowTracker()
    tracker.begin(tmp_path)
    (tmp_path / "note.txt").write_text("kept")
    tracker.log_artifact(tmp_path / "gone.txt")
    tracker.log_artifact(tmp_path / "note.txt")
    tracker.save_undelivered(tmp_path)
    client = mlflow.MlflowClient(tracker.tracking_uri)
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["note.txt"]


@pytest.mark.filterwarnings("ignore:.*MLflow")
def test_of_metrics_only_what_is_invalid_itself_is_left_out_and_kept(tmp_path):
    tracker = MLflowTracker()
    tracker.begin(tmp_path)
    tracker.log_metrics({"good": 1.0, "b\x00d": 2.0, "fine": 3.0}, 7)
    tracker.save_undelivered(tmp_path)
    run = mlflow.MlflowClient(tracker.tracking_uri).get_run(tracker.run_id)
    assert run.data.metrics == {"good": 1.0, "fine": 3.0}
    assert [row["value"] for row in untracked(tmp_path)] == [2.0]


@pytest.mark.filterwarnings("ignore:.*MLflow")
def test_a_database_that_is_damaged_in_the_middle_of_a_run_costs_no_metric(tmp_path):
    tracker = MLflowTracker()
    tracker.begin(tmp_path)
    tracker.log_metrics({"train/loss": 1.0}, 0)
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    tracker.log_metrics({"train/loss": 0.5}, 1)
    tracker.save_undelivered(tmp_path)
    tracker.finalize("failed")
    assert [row["step"] for row in untracked(tmp_path)] == [1]


@pytest.mark.filterwarnings("ignore:.*MLflow")
def test_metrics_that_can_be_kept_nowhere_do_not_end_the_run(unwilling, tmp_path):
    tracker = MLflowTracker(tracking_uri=unwilling)
    tracker.begin(tmp_path)
    tracker.log_metrics({"train/loss": 1.0}, 0)
    (tmp_path / "untracked_metrics.jsonl").mkdir()
    tracker.save_undelivered(tmp_path)


def test_a_run_that_is_killed_is_gone_on_with_when_its_folder_is_taken_up_again(tmp_path):
    killed = MLflowTracker()
    killed.begin(tmp_path)
    again = MLflowTracker(**noted_tracking(tmp_path))
    again.begin(tmp_path)
    again.finalize("success")
    client = mlflow.MlflowClient(killed.tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("c2c").experiment_id])
    assert [(run.info.run_id, run.info.status) for run in runs] == [(killed.run_id, "FINISHED")]


@pytest.mark.filterwarnings("ignore:.*MLflow")
def test_a_run_that_the_store_has_no_more_is_begun_anew(tmp_path, empty_store):
    gone = MLflowTracker()
    gone.begin(tmp_path)
    gone.finalize()
    shutil.copy(empty_store, tmp_path / "new.db")
    again = MLflowTracker(tracking_uri=f"sqlite:///{tmp_path / 'new.db'}", run_id=gone.run_id)
    again.begin(tmp_path)
    again.log_metrics({"train/loss": 1.0}, 0)
    assert again.run_id != gone.run_id
    assert noted_tracking(tmp_path)["run_id"] == again.run_id
    assert mlflow.MlflowClient(again.tracking_uri).get_run(again.run_id).data.metrics == {"train/loss": 1.0}


@pytest.mark.slow
def test_a_process_that_ends_in_between_leaves_no_run_running(tmp_path):
    code = "from pathlib import Path; from c2c_lightning.tracking import MLflowTracker as T; T().begin(Path()); 1 / 0"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "ZeroDivisionError" in ended.stderr
    noted = noted_tracking(tmp_path)
    assert mlflow.MlflowClient(noted["tracking_uri"]).get_run(noted["run_id"]).info.status == "FAILED"
