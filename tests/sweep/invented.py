"""Trials that never ran, of sweeps as they are."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from c2c_lightning.sweep.trials import Trial

METRIC = "val/accuracy/c2c"
BEGUN = 1000.0


def gates(num_layers: int, opened: dict[str, set[int]], mapped: list[int] | None = None) -> list[dict]:
    """Of one sharer: by part the layers that are open, of those that are mapped."""
    layers = range(num_layers) if mapped is None else mapped
    return [{part: {str(n): float(n in open_layers) for n in layers} for part, open_layers in opened.items()}]


def trial(
    number: int,
    score: float | None = None,
    num_open: int = 4,
    state: str = "finished",
    values: dict[str, Any] | None = None,
    step: int = 300,
    **rest: Any,
) -> Trial:
    """A trial whose last validation had a score, with so many of 4 + 4 layers open."""
    opened = {"keys": set(range(min(4, num_open))), "values": set(range(num_open - 4))}
    row = {"step": step, "max_steps": 300, "metrics": {METRIC: score}, "gates": gates(4, opened)}
    row["time"] = BEGUN + step / 5
    values = {"model.optimizer.lr": 0.001 * (number + 1)} if values is None else values
    progress = [] if state == "waiting" else [row]
    return Trial(number, values, Path(f"runs/{number:03d}"), state, progress=progress, **{"starts": [BEGUN], **rest})


def nano_sweep() -> list[Trial]:
    """12 trials of the built-in pair, 4 layers."""
    rng = random.Random(0)
    trials = []
    for number in range(12):
        mapped = rng.choice([[0, 1, 2, 3], [2, 3], [0, 1], [3]])
        values = {
            "model.layers": mapped,
            "model.gate.parts": rng.choice(["both", "keys", "values"]),
            "model.gate.init": rng.choice([0.0, 1.0, 2.0]),
            "model.optimizer.gate_lr": 10 ** rng.uniform(-2, 0),
        }
        parts = ["keys", "values"] if values["model.gate.parts"] == "both" else [values["model.gate.parts"]]
        opened = {part: {n for n in mapped if rng.random() < 0.75} for part in parts}
        quality = sum(n in opened.get("values", ()) for n in (2, 3)) + 0.3 * (3 in opened.get("keys", ()))
        score = 0.09 + 0.38 * quality + rng.uniform(-0.03, 0.03)
        is_stopped = score < 0.3 and number > 2
        trials.append(_ended(number, values, score, gates(4, opened, mapped), is_stopped, 300))
    return trials


def big_sweep(count: int = 64, num_layers: int = 28) -> list[Trial]:
    """Trials of a 28-layer pair with lists of layers, mappings, a logarithmic learning rate, and some that failed."""
    rng = random.Random(1)
    fusers: list[dict[str, Any]] = [
        {"class_path": "c2c_lightning.fuser.C2CFuser", "init_args": {"hidden": hidden}} for hidden in (256, 512, 1024)
    ]
    trials = []
    for number in range(count):
        mapped = [n for n in range(num_layers) if rng.random() < 0.6]
        values = {
            "model.layers": mapped,
            "model.layer_map": rng.choice(["terminal", "depth"]),
            "model.fuser": rng.choice(fusers),
            "model.gate.granularity": rng.choice(["layer", "head"]),
            "model.gate.sparsity": rng.choice([0.0, 0.01, 0.1]),
            "model.gate.temperature": rng.choice([[1.0, 0.001], [2.0, 0.01]]),
            "model.optimizer.lr": 10 ** rng.uniform(-5, -2),
            "data.init_args.max_length": rng.choice([1024, 2048]),
        }
        shares = (0.0, 0.25, 0.5, 1.0) if values["model.gate.granularity"] == "head" else (0.0, 1.0)
        openness = rng.random()
        opened = [
            {
                part: {str(n): rng.choice(shares[1:]) if rng.random() < openness else 0.0 for n in mapped}
                for part in ("keys", "values")
            }
        ]
        near = 1 - abs(math.log10(values["model.optimizer.lr"]) + 3.5) / 3
        late = sum(opened[0]["values"].get(str(n), 0.0) for n in range(18, 28)) / 10
        score = 0.3 + 0.15 * near + 0.2 * late + 0.03 * (values["model.layer_map"] == "depth") + rng.gauss(0, 0.01)
        if number % 13 == 5:
            reason = "CUDA out of memory. Tried to allocate 2.00 GiB [GPU 0]; see log.txt"
            trials.append(Trial(number, values, Path(f"runs/{number:03d}"), "failed", reason))
            continue
        trials.append(_ended(number, values, score, opened, is_stopped=score < 0.48 and number > 5, steps=2000))
    return trials


def _ended(number: int, values: dict, score: float, shares: list[dict], is_stopped: bool, steps: int) -> Trial:
    made = Trial(number, values, Path(f"runs/{number:03d}"), run_id=f"{number:032x}", starts=[BEGUN])
    made.state, made.reason = ("stopped", "not among the best half at 25%") if is_stopped else ("finished", "")
    for step in range(steps // 4, (steps // 4 if is_stopped else steps) + 1, steps // 4):
        metrics = {METRIC: score * (0.6 + 0.4 * step / steps) if not is_stopped else score, "val/loss": 2 - score}
        made.progress.append(
            {"step": step, "max_steps": steps, "metrics": metrics, "gates": shares, "time": BEGUN + step * 0.2}
        )
    return made
