"""Runs on several processes of this machine, over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from c2c_lightning.files import PROJECT
from tests.training.runs import BASE, SMALL, Run, newest

FSDP1, FSDP2 = (["--config", str(PROJECT / "conf" / "trainer" / f"{name}.yaml")] for name in ("fsdp", "fsdp2"))
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
# 20 steps on 16 questions each, whatever their number of processes, with a checkpoint every 5.
STEPS = ["--trainer.max_steps=20", "--trainer.val_check_interval=5", "--trainer.log_every_n_steps=1"]
ON_TWO = ["--trainer.devices=2", "--data.init_args.batch_size=8"]


def launch(workspace: Path, *args: str, by: list[str] | None = None) -> Run:
    """Runs `fit` as a user does, so that Lightning can run the command again for every further process.

    Args:
        workspace: the working folder.
        *args: of the command line.
        by: another module that starts the processes.
    """
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, "-m", *(by or []), "c2c_lightning", "fit", "--config", BASE, *SMALL, *args],
        cwd=workspace,
        env={**environment, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return newest(workspace)


def curve(run: Run, metric: str) -> list[float]:
    """A metric at every step."""
    return [point.value for point in run.client.get_metric_history(run.tracked.info.run_id, metric)]


def assert_same_fuser(run: Run, other: Run) -> None:
    """That two runs ended with the same fuser but for the order in which numbers were added.

    Adam makes steps of like size of large gradients and of those that are nothing but rounding errors, so a few
    weights that do not matter may end apart by as much as they were moved.
    """
    ours, others = (r.checkpoint()["state_dict"] for r in (run, other))
    assert ours.keys() == others.keys()
    apart = sum((ours[name] - others[name]).square().sum() for name in ours)
    assert (apart / sum(tensor.square().sum() for tensor in others.values())).sqrt() < 2e-3
    logits = [name for name in ours if name.endswith("gate.logit")]
    assert logits
    assert all((ours[name] - others[name]).abs().max() < 1e-4 for name in logits)
