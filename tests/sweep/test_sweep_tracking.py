"""The sweep's run in MLflow: it always ends, and its trials' runs find their way below it."""

import json
from dataclasses import replace

import mlflow
import pytest

from c2c_lightning.sweep.driver import conclude, refuse_failure
from c2c_lightning.sweep.settings import SWEEP_FILE, Sweep
from c2c_lightning.sweep.tracking import tracked
from c2c_lightning.sweep.trials import Trials
from c2c_lightning.tracking import MLflowTracker, note_tracking
from tests.sweep.invented import METRIC, nano_sweep, trial
from tests.test_tracking import empty_store as empty_store
from tests.test_tracking import server as server
from tests.test_tracking import workspace as workspace

SWEEP = Sweep(space={"model.layers": {"choice": ["all"]}}, search="random", trials=1)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "gating"
    folder.mkdir()
    (folder / SWEEP_FILE).write_text("seed: 0\n")
    return folder


def run_of(folder) -> mlflow.entities.Run:
    known = json.loads((folder / "mlflow.json").read_text())
    return mlflow.MlflowClient(known["tracking_uri"]).get_run(known["run_id"])


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")], ids=str
)
def test_the_run_of_a_sweep_ends_however_the_sweep_does(folder, error, status):
    def sweep() -> None:
        with tracked(folder, SWEEP):
            assert run_of(folder).info.status == "RUNNING"
            if error is not None:
                raise error

    if error is None:
        sweep()
    else:
        with pytest.raises(error):
            sweep()
    assert run_of(folder).info.status == status
    run_id = run_of(folder).info.run_id
    with tracked(folder, SWEEP):  # resumed
        pass
    assert (run_of(folder).info.run_id, run_of(folder).info.status) == (run_id, "FINISHED")


def test_a_figure_that_cannot_be_drawn_costs_nothing_else(folder, tmp_path):
    trials = nano_sweep()
    for one in trials:
        one.folder = tmp_path / one.name
        one.folder.mkdir()
        (one.folder / "trial.yaml").write_text("seed_everything: 42\n")
    trials[0].progress[-1]["gates"] = [{"keys": {"no layer": 1.0}, "values": {}}]
    with tracked(folder, SWEEP) as tracker, pytest.warns(UserWarning, match=r"gates\.png could not be drawn"):
        conclude(SWEEP, folder, trials, tracker)
    run = run_of(folder)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    kept = {file.path for path in ("", "figures") for file in client.list_artifacts(run.info.run_id, path)}
    assert kept >= {"sweep.yaml", "sweep.csv", "best.yaml", "figures/values.png"}
    assert "figures/gates.png" not in kept
    assert run.info.status == "FINISHED"
    assert run.data.metrics[f"best/{METRIC}"] == max(t.score(METRIC) for t in trials if t.state == "finished")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:MLflow at .* is out of reach")
def test_runs_that_trials_began_themselves_while_the_store_was_away_are_below_the_sweeps(server, folder, monkeypatch):
    port, start = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    trials = Trials(folder, replace(SWEEP, base=[]))
    trials.resume()
    one = trials.next()
    with tracked(folder, SWEEP) as tracker:
        assert tracker.run_id is None
        tracker.begin_trial(one)
        tracker.note(trials.note(one, "running"))
        start()
        fit = MLflowTracker(run_name="000")
        fit.begin()
        note_tracking(fit, one.folder)
        tracker.note(trials.note(one, "finished"))
    run, parent = run_of(one.folder), run_of(folder)
    assert parent.info.status == "FINISHED"
    assert run.info.run_name == "000 layers=all"
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.tags["trial"] == "finished"
    assert run.data.params["sweep/model.layers"] == "all"


def test_word_of_a_run_is_written_whole(folder):
    tracker = MLflowTracker()
    tracker.begin()
    note_tracking(tracker, folder)
    before = (folder / "mlflow.json").stat().st_ino
    note_tracking(tracker, folder)
    assert (folder / "mlflow.json").stat().st_ino != before, "in the place of the old file, not over it"


def test_a_sweep_of_which_every_trial_failed_has_failed(folder, capsys):
    failed = [trial(n, None, state="failed", reason=f"out of memory {n}") for n in range(2)]
    with pytest.raises(ValueError, match=r"(?s)2 of 2 trials failed, trial 000 because: out of memory 0.*000/log\.txt"):
        refuse_failure(failed, folder)
    refuse_failure([*failed, trial(2, 0.5)], folder)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 trials failed" in said
    assert f"sweep --resume {folder}" in said
    refuse_failure([trial(2, 0.5)], folder)
    assert not capsys.readouterr().out
