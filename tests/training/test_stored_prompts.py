"""A run that reads its prompts back from disk learns what one learns that computes them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from c2c_lightning.files import PROJECT
from tests.models.test_prompt_store import contents, entries
from tests.training.ranks import FSDP1, FSDP2, ON_TWO, curve, launch
from tests.training.runs import BASE, SMALL, Run, command, same
from tests.training.test_shared import prepare, runs

STEPS = ["--trainer.max_steps=6", "--trainer.val_check_interval=3", "--trainer.log_every_n_steps=1"]


def stored_in(folder: Path) -> list[str]:
    return [f"--model.prompt_store.folder={folder}", "--model.prompt_store.budget_gb=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("store") / "prompts"


@pytest.fixture(scope="module")
def plain(fit):
    return fit(*STEPS)


@pytest.fixture(scope="module")
def stored(fit, folder):
    """The first run with a store, which fills it."""
    return fit(*STEPS, *stored_in(folder))


def test_losses_and_gradients_are_those_without_a_store(plain, stored):
    for metric, tolerance in (("train/loss", 1e-5), ("train/grad_norm", 1e-4), ("val/loss", 1e-5)):
        ours, expected = curve(stored, metric), curve(plain, metric)
        assert len(ours) == len(expected) == (2 if metric == "val/loss" else 6)
        assert ours == pytest.approx(expected, abs=tolerance)
    for metric, value in plain.summary["metrics"].items():
        if metric.startswith("val/accuracy"):
            assert stored.summary["metrics"][metric] == value


def test_a_second_run_computes_nothing_and_ends_with_the_same_fuser_to_the_bit(fit, stored, folder):
    before = entries(folder)
    assert len(before) >= 2 * 16 * 6  # two models, 6 steps on 16 prompts each
    again = fit(*STEPS, *stored_in(folder))
    assert entries(folder) == before
    assert same(again.checkpoint(), stored.checkpoint())
    assert curve(again, "val/loss") == curve(stored, "val/loss")


def test_damaged_entries_change_no_bit_of_a_run_and_are_made_good(fit, stored, folder):
    intact = contents(folder)
    damages = [lambda d: d[:-9] + bytes([d[-9] ^ 4]) + d[-8:], lambda d: d[: len(d) // 3], lambda d: b"", bytes.upper]
    for i, path in enumerate(sorted(entries(folder))):
        if i % 5 < 4:
            path.write_bytes(damages[i % 5](path.read_bytes()))
    again = fit(*STEPS, *stored_in(folder))
    assert same(again.checkpoint(), stored.checkpoint())
    assert contents(folder) == intact


def test_an_epoch_later_nothing_is_new(fit, tmp_path):
    lines = [json.dumps({"question": f"What is {i}? " * (i % 3 + 1), "answer": f"It is {i}."}) for i in range(12)]
    (tmp_path / "short.jsonl").write_text("\n".join(lines))
    data = [
        "--data=InstructionData",
        f"--data.init_args.path={tmp_path / 'short.jsonl'}",
        "--data.init_args.batch_size=4",
    ]
    fit(
        *data,
        "--data.init_args.val_fraction=0.1",
        "--trainer.max_epochs=3",
        "--trainer.max_steps=-1",
        *stored_in(tmp_path / "store"),
    )
    assert len(entries(tmp_path / "store")) == 2 * 12


@pytest.mark.slow
def test_two_runs_at_once_fill_one_store_and_learn_what_each_learns_alone(stored, folder, tmp_path):
    args = [
        sys.executable,
        "-m",
        "c2c_lightning",
        "fit",
        "--config",
        BASE,
        *SMALL,
        *STEPS,
        *stored_in(tmp_path / "store"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    both = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        both.append(subprocess.Popen([*args, "--trainer.default_root_dir=run"], cwd=tmp_path / name, env=environment))
    assert [process.wait(300) for process in both] == [0, 0]
    for name in ("one", "other"):
        assert same(Run(tmp_path / name / "run", "").checkpoint(), stored.checkpoint())
    assert contents(tmp_path / "store") == contents(folder)


@pytest.mark.slow
def test_two_ranks_share_a_store(plain, tmp_path):
    run = launch(tmp_path, *STEPS, *ON_TWO, *stored_in(tmp_path / "store"))
    assert curve(run, "train/loss") == pytest.approx(curve(plain, "train/loss"), abs=1e-5)
    assert entries(tmp_path / "store")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [FSDP1, FSDP2], ids=["fsdp1", "fsdp2"])
def test_sharded_models_are_refused_with_the_remedy_and_no_trace(tmp_path, strategy):
    with pytest.raises(AssertionError) as refused:
        launch(tmp_path, *STEPS, *ON_TWO, *strategy, *stored_in(tmp_path / "store"))
    message = str(refused.value)
    assert "model.prompt_store is" in message
    assert "Set model.prompt_store to null" in message
    assert "Traceback" not in message
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_trials_that_train_together_read_the_store_that_one_alone_filled(tmp_path):
    settings = {"model": {"prompt_store": {"folder": str(tmp_path / "store")}}, "trainer": {"max_steps": 4}}
    for kind in ("apart", "together"):
        prepare(tmp_path / kind, settings)
    command(tmp_path / "apart", "fit", "--config=A/trial.yaml", "--trainer.default_root_dir=A")
    before = entries(tmp_path / "store")
    assert before
    command(tmp_path / "together", "fit-shared", "--runs", "A,B")
    assert entries(tmp_path / "store") == before
    together, apart = (runs(tmp_path / folder)["A"].checkpoint() for folder in ("together", "apart"))
    assert same(together, apart)


def test_a_run_goes_on_with_a_store_that_it_began_without(fit, plain, tmp_path):
    began = fit("--trainer.max_steps=6", "--trainer.val_check_interval=3", workspace=tmp_path)
    fit(
        *STEPS,
        "--trainer.max_steps=8",
        f"--ckpt_path={began.folder}/checkpoints/step=3.ckpt",
        *stored_in(tmp_path / "store"),
        workspace=tmp_path,
    )
    assert began.summary["steps"] == 8
    assert "prompt_store" not in (began.folder / "fuser" / "config.json").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.prompt_store.folder=store", "--model.prompt_store.budget_gb=0"], r"budget_gb is 0.*positive"),
        ([f"--model.prompt_store.folder={BASE}/store"], r"prompt_store\.folder is '.*base\.yaml/store'.*name a folder"),
    ],
)
def test_what_cannot_be_a_store_is_refused_without_a_trace(fit, tmp_path, args, message):
    with pytest.raises(SystemExit, match=message):
        fit(*STEPS, *args, workspace=tmp_path)
    assert not (tmp_path / "runs").exists()
