"""The losses of a short run of conf/base.yaml, recorded so that a refactoring that changes them is seen.

OMP_NUM_THREADS=1 python -m tests.training.golden     # records them anew
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from tests.training.runs import BASE, command, newest

FILE = Path(__file__).with_name("golden_loss.json")
STEPS = 20
RUN = [
    f"--trainer.max_steps={STEPS}",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_val_batches=1",
    "--data.init_args.val_batch_size=8",
    "--trainer.enable_progress_bar=false",
    "--seed_everything=42",
]


def losses(*args: str) -> list[float]:
    """`train/loss` of every step of a run in this process, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            command(Path(folder), "fit", "--config", BASE, *RUN, *args)
            run = newest(Path(folder))
            history = run.client.get_metric_history(run.tracked.info.run_id, "train/loss")
    finally:
        torch.set_num_threads(threads)
    return [point.value for point in sorted(history, key=lambda point: point.step)]


if __name__ == "__main__":
    FILE.write_text(json.dumps(losses(), indent=2) + "\n")
