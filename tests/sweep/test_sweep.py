"""What a sweep leaves behind, from its file to the best configuration."""

import logging
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from c2c_lightning.cli.sweep import build, read_sweep
from c2c_lightning.errors import UserError
from c2c_lightning.runs import held
from c2c_lightning.sweep.runner import cluster
from c2c_lightning.sweep.settings import Sweep
from tests.sweep.sweeps import Workspace, is_free
from tests.training.runs import BASE


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A good learning rate, and one that learns nothing."""
    workspace = Workspace(tmp_path_factory.mktemp("swept"))
    workspace.write(
        space={"model.optimizer.lr": {"grid": [0.01, 1.0e-7]}}, asha={"grace": 0.25, "factor": 2}, concurrent=1
    )
    assert workspace.run() == 0, workspace.said
    return workspace


def test_every_trial_is_accounted_for_once(swept):
    assert list(swept.table["trial"]) == [0, 1]
    assert swept.states == ["finished", "stopped"]
    assert list(swept.table["model.optimizer.lr"]) == [0.01, 1e-7]


def test_a_weak_trial_is_stopped_early_and_says_why(swept):
    weak = swept.trials.known[1]
    assert weak.step == 5
    assert "at step 5" in weak.reason
    assert "not among the best 1/2" in weak.reason
    assert not (swept.trial(1) / "summary.json").exists()
    assert all(is_free(swept.trial(number)) for number in range(2))


def test_mlflow_has_one_run_for_the_sweep_and_one_for_each_trial(swept):
    parent, below = swept.tracked()
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["best_trial"] == "000 lr=0.01"
    artifacts = {file.path for file in swept.client.list_artifacts(parent.info.run_id)}
    assert artifacts >= {"sweep.yaml", "sweep.csv", "best.yaml", "figures"}
    assert set(below) == {"000", "001"}
    for name, status in {"000": "FINISHED", "001": "KILLED"}.items():
        run = below[name]
        assert run.info.status == status
        assert float(run.data.params["sweep/model.optimizer.lr"]) == (0.01 if name == "000" else 1e-7)
        assert "val/loss" in run.data.metrics
        assert run.data.params["model/optimizer/lr"]
    assert "not among the best" in below["001"].data.tags["reason"]
    history = swept.client.get_metric_history(below["000"].info.run_id, "val/loss")
    assert [point.step for point in history] == [4, 9, 14, 19]
    assert {"gates.png", "fuser", "log.txt"} <= {
        file.path for file in swept.client.list_artifacts(below["000"].info.run_id)
    }


@pytest.mark.slow
def test_the_best_configuration_trains_as_the_trial_did(swept, fit):
    again = fit(f"--config={swept.sweep / 'best.yaml'}")
    losses = swept.table["val/loss"]
    assert again.summary["metrics"]["val/loss"] == pytest.approx(losses[0], abs=1e-6)
    assert losses[0] < losses[1]


def test_trials_are_listed_as_they_go_and_at_the_end(swept):
    assert "trial 000: running" in swept.said
    assert "2 of 2 trials done" in swept.said
    assert "Traceback" not in swept.said


@pytest.mark.slow
def test_a_trial_that_fails_again_and_again_is_marked_failed_with_its_log(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.write(
        space={"trainer.callbacks": {"grid": [[], [{"class_path": "tests.training.runs.Fail"}]]}},
        retries=1,
        concurrent=2,
    )
    assert workspace.run() == 0, workspace.said
    assert workspace.states == ["finished", "failed"]
    failed = workspace.tracked()[1]["001"]
    assert failed.info.status == "FAILED"
    assert "the disk is on fire" in failed.data.tags["reason"]
    assert "RuntimeError: the disk is on fire" in failed.data.tags["log"]
    log = (workspace.trial(1) / "log.txt").read_text()
    assert log.count("RuntimeError: the disk is on fire") == 2, "begun, and begun once again"


REFUSED = {
    "unknown key": (
        {"space": {"model.gate.sparsety": {"choice": [0.1]}}, "trials": 1},
        r"space with model\.gate\.sparsety: 0\.1: .*Did you mean .*sparsity",
    ),
    "empty space": ({"space": {}, "trials": 1}, "space is empty, so there is nothing to try"),
    "unknown setting": ({"space": {"model.layers": {"grid": ["all"]}}, "trails": 1}, "Did you mean trials"),
    "layer that is not there": (
        {"space": {"model.layers": {"grid": ["all", [7]]}}},
        r"space with model\.layers: \[7\]: model\.layers names receiver layer 7",
    ),
    "no number of trials": ({"space": {"model.layers": {"choice": ["all"]}}}, "trials is not given"),
    "grid in a random search": (
        {"space": {"model.layers": {"grid": ["all"]}}, "search": "random", "trials": 1},
        r"search is random, but space\.model\.layers is a grid",
    ),
    "key twice": (
        {"space": {"model.layers": {"grid": ["all"]}}, "fixed": {"model.layers": "all"}},
        "model.layers is both in space and in fixed",
    ),
    "key that is a number": ({"space": {3: {"choice": [1]}}, "trials": 1}, "space has the key 3: give a dotted key"),
    "key with nothing between dots": (
        {"space": {"model..layers": {"grid": ["all"]}}},
        r"space has the key 'model\.\.layers': give a dotted key",
    ),
    "fixed key that is a number": (
        {"space": {"model.layers": {"grid": ["all"]}}, "fixed": {1: 2}},
        "fixed has the key 1: give a dotted key",
    ),
    "strange first value": (
        {"space": {"model.gate.init": {"choice": [1, 2]}}, "trials": 1, "first": [{"model.gate.init": {"a": 1}}]},
        r"first has model\.gate\.init: {'a': 1}, which is none of 1, 2",
    ),
    "first key that is a number": (
        {"space": {"model.layers": {"choice": ["all"]}}, "trials": 1, "first": [{1: 2}]},
        r"first\[0\] has the key 1",
    ),
    "resources that are no number": (
        {"space": {"model.layers": {"grid": ["all"]}}, "resources": {"cpus": math.nan}},
        "resources has cpus nan",
    ),
    "endless resources": (
        {"space": {"model.layers": {"grid": ["all"]}}, "resources": {"gpus": math.inf}},
        "resources has cpus 1.0 and gpus inf",
    ),
    "negative seed": ({"space": {"model.layers": {"grid": ["all"]}}, "seed": -1}, "seed is -1: it must be from 0"),
    "huge seed": ({"space": {"model.layers": {"grid": ["all"]}}, "seed": 2**32}, "seed is 4294967296: it must be"),
    "endless factor": (
        {"space": {"model.layers": {"grid": ["all"]}}, "asha": {"factor": math.inf}},
        "asha.factor is inf",
    ),
    "missing base": (
        {"space": {"model.layers": {"grid": ["all"]}}, "base": "nowhere.yaml"},
        "nowhere.yaml: no such file",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_before_anything_runs(name, tmp_path, monkeypatch):
    from c2c_lightning.cli.commands import main

    settings, message = REFUSED[name]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({"base": BASE, **settings}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"(?s)error: .*{message}"):
        main(["sweep", "--config", "wrong.yaml"])
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_build_leaves_lightning_as_talkative_as_it_was(monkeypatch):
    monkeypatch.setattr("sys.argv", ["c2c_lightning"])
    build(yaml.safe_load(Path(BASE).read_text()))
    assert logging.getLogger("lightning.pytorch").isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x81", "the sweep file wrong.yaml is no YAML"),
        (b"[1, 2]\n", "the sweep file wrong.yaml is damaged"),
        (b"space: {a\n", "the sweep file wrong.yaml is no YAML"),
        (b"base: binary.yaml\nspace: {model.layers: {grid: [all]}}\n", "the base binary.yaml is no YAML"),
        (b"base: list.yaml\nspace: {model.layers: {grid: [all]}}\n", "the base list.yaml is damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(content, message, tmp_path, monkeypatch):
    from c2c_lightning.cli.commands import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_bytes(content)
    (tmp_path / "binary.yaml").write_bytes(b"a: \xd0\x28")
    (tmp_path / "list.yaml").write_text("[1]\n")
    with pytest.raises(SystemExit, match=f"error: {message}"):
        main(["sweep", "--config", "wrong.yaml"])
    assert not (tmp_path / "runs").exists()


def test_a_sweep_whose_file_is_damaged_is_not_resumed(tmp_path, monkeypatch):
    from c2c_lightning.cli.commands import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_bytes(b"\x80\x81")
    with pytest.raises(SystemExit, match=r"error: the sweep file .*sweep\.yaml is no YAML"):
        main(["sweep", "--resume", str(tmp_path)])


def test_a_sweep_that_another_process_runs_is_not_resumed(tmp_path, monkeypatch):
    from c2c_lightning.cli.commands import main

    monkeypatch.chdir(tmp_path)
    begun = Sweep(base=BASE, space={"model.layers": {"grid": ["all"]}}, search="grid", trials=1)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(asdict(begun)))
    with held(tmp_path, "sweep"), pytest.raises(SystemExit, match=r"error: another sweep is writing to "):
        main(["sweep", "--resume", str(tmp_path)])


def test_dotted_options_are_keys_of_fixed_and_space(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"space": {"model.layers": {"grid": ["all"]}}, "fixed": {"trainer.max_steps": 20}}))
    typed = ["--fixed.trainer.max_steps", "5", "--fixed.a.b=x", "--space.model.gate.init", "{grid: [0, 1]}"]
    sweep, _ = read_sweep(["--config", str(file), *typed])
    assert sweep.fixed == {"trainer.max_steps": 5, "a.b": "x"}
    assert sweep.space == {"model.layers": {"grid": ["all"]}, "model.gate.init": {"grid": [0, 1]}}
    assert read_sweep(["--space.model.layers", "{grid: [all]}"])[0].space == {"model.layers": {"grid": ["all"]}}


@pytest.mark.slow
@pytest.mark.parametrize("number", [64, 1e300])
def test_a_demand_that_no_machine_meets_is_refused_and_leaves_nothing_behind(number, tmp_path):
    workspace = Workspace(tmp_path)
    workspace.write(space={"model.layers": {"grid": ["all"]}}, resources={"cpus": 1, "gpus": number})
    assert workspace.run() == 1
    assert f"resources asks for 1 CPUs and {number:g} GPUs on one machine, but the largest" in workspace.said
    assert "Traceback" not in workspace.said
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "mlflow.db").exists()


# Not "auto", which finds the cluster that another test has up at the same time.
@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere"])
def test_an_address_where_no_cluster_answers_is_named(address):
    with pytest.raises(UserError, match=f"no Ray cluster answers at '{address}'"), cluster(address):
        pass


@pytest.mark.slow
def test_a_metric_that_never_appears_ends_the_sweep_at_the_first_report(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.write(
        space={"model.layers": {"grid": ["all", "last:2", "last:1"]}}, metric="val/acuracy/c2c", concurrent=1
    )
    assert workspace.run() == 1
    assert "metric is 'val/acuracy/c2c', which it did not report" in workspace.said
    assert "Did you mean val/accuracy/c2c?" in workspace.said
    assert "Traceback" not in workspace.said
    assert len(workspace.trials.known) == 1
    assert is_free(workspace.trial(0))


@pytest.mark.slow
def test_a_trial_that_diverges_fails_with_the_reason_and_the_others_finish(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.write(space={"model.optimizer.lr": {"grid": [1.0e30, 0.01]}}, metric="val/loss", concurrent=2)
    assert workspace.run() == 0, workspace.said
    assert workspace.states == ["failed", "finished"]
    assert "train/loss is nan" in workspace.trials.known[0].reason


def test_a_folder_that_cannot_be_made_ends_in_one_message(tmp_path, monkeypatch):
    from c2c_lightning.cli.commands import main

    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"base": BASE, "space": {"model.layers": {"grid": ["all"]}}}))
    (tmp_path / "runs").write_text("a file")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"error: the folder of runs runs/sweeps cannot be made: Not a directory"):
        main(["sweep", "--config", "sweep.yaml"])
