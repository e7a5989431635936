"""What a shared prefill saves: K `fit` commands one after the other against one `fit-shared`, on the built-in pair.

    python -m benchmarks.shared_prefill --steps 300 --trials [1,2,4]

Whole commands are timed, start-up included. Both leave the same folders, whose final losses are compared.

docs/sweeps.md has what was seen on two cores. It pays by what trials share (start-up, data, prefill) over what each
has of its own (its fuser, the response, the backward pass). The larger the models beside the fusers, the closer K
trials come to the price of one.
Memory grows with K: the fusers' and the responses' activations of all trials are kept until the backward pass.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli

from c2c_lightning.sweep.configuration import merge

PROJECT = Path(__file__).resolve().parents[1]
# Configurations that a sweep over gating would try, over conf/base.yaml.
GATING = [
    {},
    {"gate": {"granularity": "head", "sparsity": 0.01}},
    {"gate": {"noise": "gumbel", "init": 0.0}},
    {"gate": {"temperature": [1.0, 0.1], "schedule": "linear"}},
]
# The same kind of sweep where the fuser is small beside the models.
SMALL = [
    {"layers": layers, "gate": {"parts": parts}, "fuser": {"init_args": {"hidden": 32}}}
    for layers, parts in (("last:2", "both"), ("first:2", "both"), ([0, 2], "both"), ("all", "values"))
]
SWEEPS = {"hidden 128, all layers": GATING, "hidden 32, few layers": SMALL}


@dataclass
class Cost:
    """What a command took, in seconds; processor time tells more where others use the machine too."""

    wall: float
    processor: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.processor + other.processor)


def measure(steps: int = 300, trials: list[int] = [1, 2, 4], sweeps: list[str] = list(SWEEPS)) -> None:  # noqa: B006
    """Prints a table.

    Args:
        steps: optimizer steps of every trial.
        trials: numbers of trials, up to 4.
        sweeps: which of the sweeps.
    """
    print(
        "| sweep | K | K commands, s (processor) | one command, s (processor) | times as fast | final losses differ by |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    for name in sweeps:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            apart = [
                run(root, ["fit", "--config", str(trial / "trial.yaml"), "--trainer.default_root_dir", str(trial)])
                for trial in prepared(root / "apart", SWEEPS[name][: max(trials)], steps)
            ]
            for count in trials:
                folders = prepared(root / f"shared {count}", SWEEPS[name][:count], steps)
                one = run(root, ["fit-shared", "--runs", ",".join(map(str, folders))])
                each = sum(apart[1:count], apart[0])
                off = max(loss_difference(root / "apart" / trial.name, trial) for trial in folders)
                print(
                    f"| {name} | {count} | {each.wall:.0f} ({each.processor:.0f}) | {one.wall:.0f} ({one.processor:.0f}) "
                    f"| {each.wall / one.wall:.2f} ({each.processor / one.processor:.2f}) | {off:.1g} |",
                    flush=True,
                )


def prepared(root: Path, values: list[dict[str, Any]], steps: int) -> list[Path]:
    """Folders with a configuration each."""
    fixed = {"trainer.max_steps": steps, "trainer.enable_progress_bar": False}
    folders = []
    for number, model in enumerate(values):
        config = merge([str(PROJECT / "conf" / "base.yaml")], fixed, {"model": model})
        folders.append(root / f"{number:03d}")
        folders[-1].mkdir(parents=True)
        (folders[-1] / "trial.yaml").write_text(yaml.safe_dump(config))
    return folders


def run(root: Path, args: list[str]) -> Cost:
    """Runs a command."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    started, before = time.perf_counter(), children()
    done = subprocess.run(
        [sys.executable, "-m", "c2c_lightning", *args], cwd=root, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return Cost(time.perf_counter() - started, children() - before)


def children() -> float:
    """Processor seconds of all commands so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def loss_difference(first: Path, second: Path) -> float:
    one, other = (json.loads((folder / "summary.json").read_text())["metrics"] for folder in (first, second))
    return max(abs(one[name] - other[name]) for name in ("train/loss", "val/loss"))


if __name__ == "__main__":
    auto_cli(measure)
