"""Several processes learn what one learns."""

import os
import subprocess
import sys

import torch

from c2c_lightning.communication.models import PROJECT
from tests.training.runs import BASE, SMALL, newest


def test_two_processes_have_the_gradient_of_one_on_the_same_global_batch(fit, tmp_path):
    """A step on 16 questions, as one batch, and as 8 on each of two ranks."""
    step = ["--trainer.max_steps=1"]
    ranks = ["--trainer.strategy=ddp", "--trainer.devices=2", "--data.init_args.batch_size=8"]
    # A child of the run starts its second rank by running the command again, so it has to be one.
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    subprocess.run(
        [sys.executable, "-m", "c2c_lightning", "fit", "--config", BASE, *SMALL, *step, *ranks],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=600,
    )
    two, one = newest(tmp_path).checkpoint(), fit(*step).checkpoint()
    # After one step AdamW's running mean is the gradient, times 1 - beta1.
    mean_of_two, mean = (run["optimizer_states"][0]["state"] for run in (two, one))
    assert len(mean) > 10
    for i in mean:
        torch.testing.assert_close(mean_of_two[i]["exp_avg"], mean[i]["exp_avg"], rtol=1e-3, atol=1e-6)
    metrics = newest(tmp_path).summary["metrics"]
    assert {"val/loss", "val/accuracy/c2c", "val/accuracy/receiver"} <= metrics.keys()
