"""Trials that train together on one prefill leave what each would have left alone."""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from c2c_lightning.tracking import MLflowTracker, note_tracking
from tests.training.runs import BASE, Run, command, same

# Other layers, parts, kinds of gate and rates; two fusers of one shape, and one that draws its dropout.
TRIALS = {
    "A": {"gate": {"granularity": "head", "sparsity": 0.1}},
    "B": {"layers": "last:2", "gate": {"parts": "values", "noise": "gumbel"}, "optimizer": {"warmup": 0.5}},
    "C": {"gate": {"kind": "fixed", "open_layers": [0, 3]}, "fuser": {"init_args": {"hidden": 8, "dropout": 0.2}}},
}
SETTINGS = {
    "model": {"fuser": {"init_args": {"hidden": 16}}},
    "data": {"init_args": {"batch_size": 16, "val_batch_size": 8}},
    "trainer": {
        "max_steps": 8,
        "val_check_interval": 4,
        "limit_val_batches": 1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
    },
}


def over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A configuration with some of its values replaced."""
    merged = copy.deepcopy(base)
    for key, value in values.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and "class_path" not in value
        merged[key] = over(merged[key], value) if nested else value
    return merged


def prepare(workspace: Path, settings: dict[str, Any] | None = None) -> list[str]:
    """A folder of each trial with its configuration; the folders' names."""
    base = over(yaml.safe_load(Path(BASE).read_text()), SETTINGS)
    for name, model in TRIALS.items():
        config = over(over(base, {"model": model}), settings or {})
        (workspace / name).mkdir(parents=True, exist_ok=True)
        (workspace / name / "trial.yaml").write_text(yaml.safe_dump(config))
    return list(TRIALS)


def fit(workspace: Path, name: str, *args: str) -> None:
    command(workspace, "fit", f"--config={name}/trial.yaml", f"--trainer.default_root_dir={name}", *args)


def runs(workspace: Path) -> dict[str, Run]:
    return {name: Run(workspace / name, f"sqlite:///{workspace / 'mlflow.db'}") for name in TRIALS}


def curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Every metric's history, but for what the clock says."""
    tracked = run.tracked
    names = {name for name in tracked.data.metrics if name != "train/tokens_per_second"}
    points = {name: run.client.get_metric_history(tracked.info.run_id, name) for name in names}
    return {name: [(point.step, point.value) for point in history] for name, history in points.items()}


def files(run: Run) -> set[str]:
    return {file.relative_to(run.folder).as_posix() for file in run.folder.rglob("*")}


@pytest.fixture(scope="module")
def apart(tmp_path_factory) -> dict[str, Run]:
    """Each trial by a `fit` of its own."""
    workspace = tmp_path_factory.mktemp("apart")
    for name in prepare(workspace):
        fit(workspace, name)
    return runs(workspace)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> dict[str, Run]:
    """All trials by one `fit-shared`; the first one's MLflow run is there already."""
    workspace = tmp_path_factory.mktemp("together")
    names = prepare(workspace)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = MLflowTracker(run_name="made beforehand")
        tracker.begin()
        note_tracking(tracker, workspace / names[0])
    command(workspace, "fit-shared", "--runs", ",".join(names))
    return runs(workspace)


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_ends_with_the_fuser_and_the_metrics_that_it_would_have_had_alone(apart, together, name):
    ours, alone = together[name], apart[name]
    assert same(ours.checkpoint(), alone.checkpoint())
    clock = "train/tokens_per_second"
    assert ours.summary["metrics"].keys() == alone.summary["metrics"].keys()
    for metric, value in alone.summary["metrics"].items():
        assert metric == clock or ours.summary["metrics"][metric] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_leaves_what_fit_leaves_in_its_folder_and_in_mlflow(apart, together, name):
    ours, alone = together[name], apart[name]
    assert files(ours) - {"mlflow.json"} == files(alone) - {"mlflow.json"}
    assert (ours.folder / "config.yaml").read_text() == (alone.folder / "config.yaml").read_text()
    assert ours.tracked.data.params == alone.tracked.data.params
    assert ours.tracked.info.status == "FINISHED"
    mine, expected = curves(ours), curves(alone)
    assert mine.keys() == expected.keys()
    for metric, points in expected.items():
        assert [step for step, _ in mine[metric]] == [step for step, _ in points]
        assert [value for _, value in mine[metric]] == pytest.approx([value for _, value in points], abs=1e-5)
    artifacts = [{file.path for file in run.client.list_artifacts(run.tracked.info.run_id)} for run in (ours, alone)]
    assert artifacts[0] == artifacts[1]
    lines = [json.loads(line) for line in (ours.folder / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]


def test_an_mlflow_run_that_was_made_beforehand_is_gone_on_with(together):
    tracked = together["A"].tracked
    assert tracked.info.run_name == "made beforehand"
    assert tracked.data.params["model/gate/granularity"] == "head"


@pytest.mark.slow
def test_accumulated_micro_batches_of_like_length_are_learned_from_as_alone(tmp_path):
    file = tmp_path / "short.jsonl"
    lines = [json.dumps({"question": "What is it? " * (i % 7 + 1), "answer": f"It is {2 * i}."}) for i in range(40)]
    file.write_text("\n".join(lines))
    data = {"class_path": "InstructionData", "init_args": {"path": str(file), "batch_size": 4, "val_fraction": 0.1}}
    short = {"data": data, "trainer": {"accumulate_grad_batches": 2, "max_steps": 3, "val_check_interval": 10}}
    names = ["B", "C"]
    for kind in ("apart", "together, once"):
        prepare(tmp_path / kind, short)
    for name in names:
        fit(tmp_path / "apart", name)
    folders = [str(tmp_path / "together, once" / name) for name in names]
    command(tmp_path / "together, once", "fit-shared", "--runs", json.dumps(folders))
    together, apart = runs(tmp_path / "together, once"), runs(tmp_path / "apart")
    for name in names:
        assert same(together[name].checkpoint(), apart[name].checkpoint())


def test_a_stopped_trial_leaves_the_others_alone_and_goes_on_under_fit(apart, tmp_path):
    names = prepare(tmp_path)
    (tmp_path / "A" / "stop").touch()
    command(tmp_path, "fit-shared", "--runs", ",".join(names))
    left = runs(tmp_path)
    assert left["A"].tracked.info.status == "KILLED"
    assert left["A"].checkpoint()["global_step"] == 4
    assert not (left["A"].folder / "fuser").exists()
    for name in names[1:]:
        assert left[name].tracked.info.status == "FINISHED"
        assert same(left[name].checkpoint(), apart[name].checkpoint())
    fit(tmp_path, "A", "--ckpt_path=A")
    assert left["A"].tracked.info.status == "FINISHED"
    assert left["A"].checkpoint()["global_step"] == 8
    assert same(left["A"].checkpoint(), apart["A"].checkpoint())


def test_a_trial_whose_numbers_are_not_finite_fails_alone(apart, tmp_path):
    names = prepare(tmp_path)
    file = tmp_path / "A" / "trial.yaml"
    file.write_text(yaml.safe_dump(over(yaml.safe_load(file.read_text()), {"model": {"optimizer": {"lr": 1e30}}})))
    with pytest.raises(SystemExit, match=r"A: train/loss is \S+ and the norm of its gradient \S+ at step"):
        command(tmp_path, "fit-shared", "--runs", ",".join(names))
    left = runs(tmp_path)
    assert left["A"].tracked.info.status == "FAILED"
    assert "not_finite" in (left["A"].folder / "traceback.txt").read_text()
    assert not (left["A"].folder / "summary.json").exists()
    for name in names[1:]:
        assert left[name].tracked.info.status == "FINISHED"
        assert same(left[name].checkpoint(), apart[name].checkpoint())


def test_interrupted_trials_are_resumed_by_the_same_command(apart, together, tmp_path):
    cut = {"class_path": "tests.training.runs.RaiseSignal", "init_args": {"step": 5, "number": int(signal.SIGTERM)}}
    names = prepare(tmp_path, {"trainer": {"callbacks": [cut]}})
    with pytest.raises(SystemExit) as stopped:
        command(tmp_path, "fit-shared", "--runs", ",".join(names))
    assert stopped.value.code == 128 + signal.SIGTERM
    left = runs(tmp_path)
    began = {name: run.tracked.info.run_id for name, run in left.items()}
    for run in left.values():
        assert run.checkpoint()["global_step"] == 5
        assert run.tracked.info.status == "KILLED"
    prepare(tmp_path)
    command(tmp_path, "fit-shared", "--runs", ",".join(names))
    for name, run in left.items():
        assert run.tracked.info.run_id == began[name]
        assert run.tracked.info.status == "FINISHED"
        assert same(run.checkpoint(), together[name].checkpoint())
        assert run.checkpoint().keys() == apart[name].checkpoint().keys()
        assert run.checkpoint()["callbacks"].keys() == apart[name].checkpoint()["callbacks"].keys()


def test_trials_that_differ_in_more_than_the_fuser_are_refused_by_key(tmp_path):
    names = prepare(tmp_path)
    file = tmp_path / "B" / "trial.yaml"
    other = over(yaml.safe_load(file.read_text()), {"data": {"init_args": {"batch_size": 8}}, "seed_everything": 7})
    file.write_text(yaml.safe_dump(other))
    with pytest.raises(SystemExit, match=r"differ in data\.init_args\.batch_size, seed_everything"):
        command(tmp_path, "fit-shared", "--runs", ",".join(names))
    assert files(runs(tmp_path)["A"]) == {"trial.yaml"}


def test_a_folder_with_a_comma_in_its_name_is_refused_with_how_to_give_it(tmp_path):
    (tmp_path / "a,b").mkdir()
    with pytest.raises(
        SystemExit, match=r"""The folder a,b has a comma in its name: give a list, --runs '\["a,b"\]'"""
    ):
        command(tmp_path, "fit-shared", "--runs", "a,b")


def test_several_devices_are_refused(tmp_path):
    names = prepare(tmp_path, {"trainer": {"devices": 2}})
    with pytest.raises(SystemExit, match="for one device"):
        command(tmp_path, "fit-shared", "--runs", ",".join(names[:1]))
