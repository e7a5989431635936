"""A checkpoint is written whole or the run says why not, and what cannot be read is refused in one message."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from c2c_lightning import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.formats.fuser_folder import newest_fuser
from c2c_lightning.training.checkpoints import CheckpointWriter, find_checkpoint
from tests.disk import full_disk
from tests.training.runs import BASE, SMALL, Run, command

GATE = "communicator.fusers.0.gate.logit"


@pytest.fixture(scope="module")
def run(fit) -> Run:
    return fit("--trainer.max_steps=2", "--trainer.val_check_interval=1")


def spoil(checkpoint: dict, how: str) -> object:
    state = checkpoint["state_dict"]
    match how:
        case "no checkpoint at all":
            return [1]
        case (
            "no loops"
            | "no callbacks"
            | "no lr_schedulers"
            | "no optimizer_states"
            | "no state_dict"
            | "no c2c"
            | "no run"
        ):
            del checkpoint[how.removeprefix("no ")]
        case "no version":
            del checkpoint["pytorch-lightning_version"]
        case "no schedule":
            checkpoint["lr_schedulers"] = []
        case "loops empty":
            checkpoint["loops"] = {"fit_loop": {}}
        case "optimizer a list":
            checkpoint["optimizer_states"] = [7]
        case "state empty":
            state.clear()
        case "state a list":
            checkpoint["state_dict"] = list(state.values())
        case "state of numbers":
            state[GATE] = 1.0
        case "callbacks bad":
            checkpoint["callbacks"] = {"GateMap": 7}
        case "c2c a list" | "c2c null":
            checkpoint["c2c"] = {"c2c a list": [1], "c2c null": None}[how]
        case "c2c without models":
            del checkpoint["c2c"]["receiver"]
        case "run of numbers":
            checkpoint["run"] = {"metrics": 1, "gate_steps": [], "gate_history": []}
        case "schedule of words":
            checkpoint["schedule"] = ["x"]
        case "a rate of words":
            checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] = "x"
        case "a schedule of nothing":
            checkpoint["lr_schedulers"] = [{"lr_lambdas": []}]
        case "a moment not finite":
            checkpoint["optimizer_states"][0]["state"][0]["exp_avg"].view(-1)[0] = torch.nan
        case "not finite":
            state[GATE][0] = torch.inf
        case "negative step":
            checkpoint["global_step"] = -3
        case "another step":
            checkpoint["global_step"] = 1
        case "fit_loop empty":
            checkpoint["loops"]["fit_loop"] = {}
        case "no current":
            del checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        case "no loop of validation":
            del checkpoint["loops"]["validate_loop"]
        case "steps without gates":
            checkpoint["run"]["gate_steps"].append(5)
        case "no best checkpoint":
            for callback in checkpoint["callbacks"].values():
                del callback["best_model_path"]
        case "no moment":
            del checkpoint["optimizer_states"][0]["state"][0]["exp_avg_sq"]
        case "no betas":
            del checkpoint["optimizer_states"][0]["param_groups"][0]["betas"]
        case "answers of numbers":
            checkpoint["answered_alone"] = {0: 3}
    return checkpoint


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no checkpoint at all", "it was not written by c2c_lightning"),
        ("no c2c", "it was not written by c2c_lightning"),
        ("no loops", "loops: Field required"),
        ("no callbacks", "callbacks: Field required"),
        ("no lr_schedulers", "lr_schedulers: Field required"),
        ("no optimizer_states", "optimizer_states: Field required"),
        ("no state_dict", "state_dict: Field required"),
        ("no version", "pytorch-lightning_version: Field required"),
        ("no schedule", "a learning rate's schedule for each optimizer"),
        ("loops empty", r"loops\.fit_loop"),
        ("optimizer a list", r"optimizer_states\.0: Input should be a valid dictionary"),
        ("state empty", "state_dict: Dictionary should have at least 1 item"),
        ("state a list", "state_dict: Input should be a valid dictionary"),
        ("state of numbers", rf"state_dict\.{GATE}: Input should be an instance of Tensor"),
        ("callbacks bad", r"callbacks\.GateMap: Input should be a valid dictionary"),
        ("c2c a list", "c2c: Input should be a valid dictionary"),
        ("c2c null", "c2c: Input should be a valid dictionary"),
        ("c2c without models", "receiver: Field required"),
        ("no run", "run: Field required"),
        ("run of numbers", r"run\.metrics: Input should be a valid dictionary"),
        ("schedule of words", r"schedule\.0: Input should be a valid tuple"),
        ("a rate of words", r"optimizer_states\.0\.param_groups\.0\.lr: Input should be a valid number"),
        ("a schedule of nothing", r"lr_schedulers\.0\.last_epoch: Field required"),
        ("a moment not finite", "exp_avg of parameter 0 in the optimizer has values that are not finite"),
        ("not finite", rf"{GATE} has values that are not finite"),
        ("negative step", "global_step: Input should be greater than or equal to 0, not -3.*another checkpoint"),
        ("another step", "global_step: 1, but loops.fit_loop has made 2 steps"),
        ("fit_loop empty", r"loops\.fit_loop\.\w+: Field required"),
        ("no current", r"loops\.fit_loop\.epoch_loop\.batch_progress\.current: Field required"),
        ("no loop of validation", r"loops\.validate_loop: Field required"),
        ("steps without gates", r"run\.gate_steps has \d+ steps, but run\.gate_history \d+\."),
        ("no best checkpoint", "callbacks.ModelCheckpoint.*best_model_path: Field required"),
        ("no moment", r"optimizer_states\.0\.state\.0\.exp_avg_sq: Field required"),
        ("no betas", r"param_groups\.0\.betas: Field required"),
        ("answers of numbers", r"answered_alone\.0: Input should be a valid tuple"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_message_as_checkpoint_and_as_fuser(run, tmp_path, how, says):
    file = tmp_path / "some.ckpt"
    torch.save(spoil(run.checkpoint(), how), file)
    with pytest.raises(UserError, match=rf"--ckpt_path {file}.*{says}"):
        find_checkpoint(file)
    with pytest.raises(UserError, match=rf"fuser '{file}'.*{says}"):
        Communicator.from_pretrained(file)


def test_a_sharded_checkpoint_whose_run_is_damaged_is_refused_in_one_message(run, tmp_path):
    folder, checkpoint = tmp_path / "sharded.ckpt", run.checkpoint()
    dcp.save({"state_dict": checkpoint.pop("state_dict")}, checkpoint_id=folder, no_dist=True)
    del checkpoint["optimizer_states"]
    torch.save(checkpoint, folder / "meta.pt")
    assert find_checkpoint(folder, sharded=True) == folder
    torch.save(checkpoint | {"global_step": -3}, folder / "meta.pt")
    with pytest.raises(UserError, match=rf"--ckpt_path {folder} is damaged: global_step: .*, not -3"):
        find_checkpoint(folder, sharded=True)
    (folder / "meta.pt").unlink()
    with pytest.raises(UserError, match=rf"--ckpt_path {folder} cannot be read"):
        find_checkpoint(folder, sharded=True)


@pytest.mark.parametrize(
    ("name", "how", "says"),
    [
        (
            "fit",
            "NanoData: 3",
            r"--ckpt_path \S*other\.ckpt: NanoData is damaged: Input should be a valid dictionary, not 3",
        ),
        (
            "fit",
            "counts below 0",
            r"NanoData is damaged: left_out\.refused: Input should be greater than or equal to 0, not -1",
        ),
        ("fit", "no order", r"place in the data \(loops.*\) is damaged: order: Field required"),
        (
            "fit",
            "other gates",
            r"its run\.gate_history at step \d+ is \[\[1, 2\]\], and would have to be \[\[2, 4, 1\]\]",
        ),
        ("validate", "other gates", r"its run\.gate_history at step \d+ is"),
    ],
)
def test_a_checkpoint_with_a_damaged_state_is_refused_when_it_is_taken_over(run, tmp_path, name, how, says):
    checkpoint = run.checkpoint("step=1.ckpt")
    match how:
        case "NanoData: 3":
            checkpoint["NanoData"] = 3
        case "counts below 0":
            checkpoint["NanoData"]["left_out"]["refused"] = -1
        case "no order":
            del checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["order"]
        case "other gates":
            checkpoint["run"] |= {"gate_steps": [1], "gate_history": [[torch.zeros(1, 2)]]}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit, match=says):
        command(tmp_path, name, "--config", BASE, *SMALL, "--trainer.max_steps=2", "--ckpt_path=other.ckpt")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("a tensor too short", rf"{GATE} is \[1, 2\], and would have to be \[2, 4, 1\]"),
        ("a tensor missing", rf"it lacks {GATE}"),
        ("a moment too short", r"its optimizer's exp_avg 0 is \[1\], not \["),
        ("a parameter missing", r"its optimizer has \d+ parameters, the run \d+"),
    ],
)
def test_a_checkpoint_that_does_not_fit_the_run_is_refused(run, fit, tmp_path, how, says):
    checkpoint = run.checkpoint()
    [optimizer] = checkpoint["optimizer_states"]
    match how:
        case "a tensor too short":
            checkpoint["state_dict"][GATE] = torch.zeros(1, 2)
        case "a tensor missing":
            del checkpoint["state_dict"][GATE]
        case "a moment too short":
            optimizer["state"][0]["exp_avg"] = torch.zeros(1)
        case "a parameter missing":
            optimizer["param_groups"][0]["params"].pop()
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit, match=f"does not fit this run: {says}"):
        fit("--trainer.max_steps=4", "--ckpt_path=other.ckpt", workspace=tmp_path)
    assert not (tmp_path / "runs").exists()


def copied(run: Run, folder: Path) -> Path:
    """A run that was cut off while it wrote last.ckpt, as a copy."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    for file in (run.folder / "checkpoints").iterdir():
        whole = file.read_bytes()
        (folder / "checkpoints" / file.name).write_bytes(whole[:1000] if file.name == "last.ckpt" else whole)
    return folder


def test_the_newest_whole_checkpoint_is_taken_where_last_ckpt_is_damaged(run, tmp_path, capsys, caplog):
    folder = copied(run, tmp_path / "run")
    whole = folder / "checkpoints" / "step=2.ckpt"
    assert find_checkpoint(folder) == whole
    assert "last.ckpt: the file is damaged" in caplog.text
    assert newest_fuser(tmp_path) == whole
    assert "last.ckpt': the file is damaged" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"last\.ckpt: the file is damaged.*Go on from {whole}, which is whole"):
        find_checkpoint(folder / "checkpoints" / "last.ckpt")


def test_a_run_that_has_ended_without_checkpoints_is_no_run_to_go_on_with(tmp_path):
    (tmp_path / "fuser").mkdir()
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="neither a run with a checkpoint"):
        find_checkpoint(tmp_path)


def test_checkpoints_are_not_written_by_way_of_the_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    CheckpointWriter().save_checkpoint({"step": 1}, tmp_path / "checkpoints" / "last.ckpt")
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt") == {"step": 1}
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("full", [False, True])
def test_a_checkpoint_that_cannot_be_written_is_told_and_leaves_the_old_one(tmp_path, full):
    folder = tmp_path / "checkpoints"
    CheckpointWriter().save_checkpoint({"step": 1}, folder / "last.ckpt")
    large = {"weights": torch.zeros(100_000)}
    if full:
        with full_disk(10_000), pytest.raises(UserError, match=r"last\.ckpt cannot be written: File too large"):
            CheckpointWriter().save_checkpoint(large, folder / "last.ckpt")
    else:
        with pytest.raises(UserError, match=r"inside/last\.ckpt cannot be written: Not a directory"):
            CheckpointWriter().save_checkpoint(large, folder / "last.ckpt" / "inside" / "last.ckpt")
    assert torch.load(folder / "last.ckpt") == {"step": 1}
    assert [file.name for file in folder.iterdir()] == ["last.ckpt"]


def test_a_signal_promises_no_checkpoint_that_could_not_be_written(fit, tmp_path, capfd, caplog):
    stop = [
        "--trainer.callbacks+=tests.training.runs.RaiseSignal",
        "--trainer.callbacks.step=1",
        "--trainer.callbacks.number=15",
    ]
    with full_disk(200_000), pytest.raises(SystemExit, match=r"last\.ckpt cannot be written: File too large"):
        fit("--trainer.max_steps=9", "--trainer.logger=false", *stop, workspace=tmp_path)
    assert "Go on with" not in caplog.text + "".join(capfd.readouterr())
