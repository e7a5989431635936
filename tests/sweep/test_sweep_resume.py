"""A sweep that is interrupted, wherever it is, or in which trials fail, can be resumed."""

import signal
import time
from pathlib import Path

import lightning as L
import pytest

from tests.sweep.sweeps import Workspace, process_of, wait_for

pytestmark = pytest.mark.slow

ONE = {"model.gate.init": {"grid": [0.5]}}


class FailUnlessMended(L.Callback):
    """Fails at step 10, until there is a file `mended` in the working folder."""

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        if trainer.global_step == 10 and not Path("mended").exists():
            raise RuntimeError("the disk is full")


def interrupted(workspace: Workspace) -> None:
    """Holds that a sweep says how to go on, and no more."""
    assert f"Go on with: python -m c2c_lightning sweep --resume {workspace.sweep.relative_to(workspace.folder)}" in (
        workspace.said
    )
    assert "Traceback" not in workspace.said


def test_ctrl_c_is_an_interruption_wherever_it_comes(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.write({"trainer.max_steps": 2000, "trainer.val_check_interval": 200}, space=ONE)
    driver = workspace.start("--config", "tiny.yaml")
    wait_for(lambda: list(tmp_path.glob("runs/sweeps/*/sweep.yaml")), "Ray starts")
    driver.send_signal(signal.SIGINT)
    assert driver.wait(120) == 128 + signal.SIGINT, workspace.said
    interrupted(workspace)
    assert not (workspace.sweep / "trials").exists()

    # Twice: the second one while the first one is still at work.
    driver = workspace.start("--resume")
    wait_for(lambda: (workspace.trial(0) / "progress.jsonl").exists(), "trial 0 trains")
    driver.send_signal(signal.SIGINT)
    time.sleep(0.3)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(120) == 128 + signal.SIGINT, workspace.said
    interrupted(workspace)
    assert workspace.states == ["waiting"]
    assert workspace.tracked()[0].info.status == "KILLED"
    wait_for(lambda: process_of(workspace.trial(0)) is None, "nothing is left behind")


def test_a_trial_that_failed_is_tried_again_when_the_sweep_is_resumed(tmp_path):
    workspace = Workspace(tmp_path)
    callback = {"class_path": "tests.sweep.test_sweep_resume.FailUnlessMended"}
    workspace.write({"trainer.callbacks": [callback]}, space=ONE, retries=0)
    assert workspace.run() == 1, workspace.said
    assert "the trial failed, trial 000 because: RuntimeError: the disk is full" in workspace.said
    assert "trials/000/log.txt" in workspace.said
    assert "Traceback" not in workspace.said
    assert workspace.tracked()[0].info.status == "FAILED"
    assert list(workspace.table["state"]) == ["failed"], "what there is is kept"

    (tmp_path / "mended").touch()
    assert workspace.run("--resume") == 0, workspace.said
    assert list(workspace.table["state"]) == ["finished"]
    assert "going on from" in (workspace.trial(0) / "log.txt").read_text(), "from its checkpoint"
    assert workspace.states == ["finished"]
    parent, below = workspace.tracked()
    assert {run.info.status for run in [parent, *below.values()]} == {"FINISHED"}
    assert below["000"].data.tags["reason"] == ""
