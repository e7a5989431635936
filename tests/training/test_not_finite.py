"""A run whose numbers are not finite any more is stopped, and spoils nothing that was good."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from c2c_lightning.cli.commands import main
from c2c_lightning.errors import UserError
from c2c_lightning.training.optimizer import OptimizerConfig
from c2c_lightning.training.run import Run
from tests.training.runs import BASE, SMALL, newest

EVERY_STEP = ["--trainer.val_check_interval=1", "--trainer.max_steps=6"]


def spoil(hook: str, step: int) -> list[str]:
    return [
        "--trainer.callbacks+=tests.training.runs.Spoil",
        f"--trainer.callbacks.hook={hook}",
        f"--trainer.callbacks.step={step}",
    ]


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        ("on_after_backward", r"norm of its gradient nan at step 3; the last good checkpoint is runs/\S+/last\.ckpt"),
        (
            "on_train_batch_end",
            r"in the checkpoint that was to be written 1 of \d+ tensors hold .*\(0\.gate\.logit, \.\.\.\); the last good",
        ),
    ],
)
def test_a_run_is_stopped_failed_and_its_last_good_checkpoint_is_left(fit, tmp_path, hook, says):
    with pytest.raises(SystemExit, match=says):
        fit(*EVERY_STEP, *spoil(hook, 2), workspace=tmp_path)
    run = newest(tmp_path)
    assert run.tracked.info.status == "FAILED"
    assert run.checkpoint()["global_step"] == 2
    assert all(tensor.isfinite().all() for tensor in run.checkpoint()["state_dict"].values())
    assert not (run.folder / "fuser").exists()
    assert not (run.folder / "summary.json").exists()


def test_a_learning_rate_that_is_far_too_high_ends_the_run(fit, tmp_path):
    with pytest.raises(SystemExit, match=r"not finite|is nan|is inf"):
        fit("--trainer.max_steps=40", "--model.optimizer.lr=1e30", workspace=tmp_path)
    run = newest(tmp_path)
    assert run.tracked.info.status == "FAILED"
    assert not (run.folder / "fuser").exists()


@pytest.mark.parametrize("name", ["0.gate.logit", "0.input.weight"])
def test_a_checkpoint_that_is_not_finite_is_neither_validated_nor_resumed(fit, tmp_path, monkeypatch, name):
    run = fit("--trainer.max_steps=2", workspace=tmp_path)
    checkpoint = run.checkpoint()
    checkpoint["state_dict"][f"communicator.fusers.{name}"].view(-1)[0] = math.nan
    torch.save(checkpoint, tmp_path / "spoilt.ckpt")
    monkeypatch.chdir(tmp_path)
    for command in ("validate", "fit"):
        with pytest.raises(SystemExit, match=rf"spoilt\.ckpt: communicator\.fusers\.{name} has values that are not f"):
            main([command, "--config", BASE, *SMALL, "--trainer.max_steps=4", "--ckpt_path=spoilt.ckpt"])
    assert list((tmp_path / "runs").iterdir()) == [run.folder]


def see(steps: list[tuple[float, float]], folder: Path) -> None:
    """Checks a run after steps of such losses and norms of the gradient."""
    run = Run(OptimizerConfig())
    run.folder = folder
    run.check_finite(trainer=None)
    for step, (loss, norm) in enumerate(steps, 1):
        run.loss = torch.tensor(loss)
        run.see_step(step, torch.tensor(norm))
    run.check_finite(trainer=None)


def test_the_first_step_that_went_wrong_is_named(tmp_path):
    with pytest.raises(
        UserError, match="train/loss is 2 and the norm of its gradient inf at step 2; there is no checkp"
    ):
        see([(1.0, 2.0), (2.0, math.inf), (math.nan, math.nan)], tmp_path)


def test_steps_that_are_finite_pass(tmp_path):
    see([(1e30, 0.0)], tmp_path)


@pytest.mark.parametrize("value", ["-1", ".nan"])
def test_a_limit_of_gradients_that_limits_nothing_is_refused(fit, tmp_path, value):
    with pytest.raises(SystemExit, match=r"trainer\.gradient_clip_val is (-1|nan): give a positive number"):
        fit("--trainer.max_steps=1", f"--trainer.gradient_clip_val={value}", workspace=tmp_path)
    assert not list(tmp_path.glob("runs/*/*"))
