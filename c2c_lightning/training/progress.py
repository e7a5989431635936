"""How far a run has come: a line of `progress.jsonl` in its folder for every validation, for whoever follows it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from c2c_lightning.fuser import PART_NAMES, Gate
from c2c_lightning.runs import PROGRESS_FILE


class Progress(L.Callback):
    """Writes a line after every validation: time, step, max_steps, metrics and open gates."""

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            for run in module.runs():
                gates = run.module.communicator.gates
                add_progress(run.folder, trainer.global_step, run.module.num_steps(), run.metrics, gates)


def add_progress(
    folder: Path, step: int, max_steps: int, metrics: Mapping[str, Tensor | float], gates: Sequence[Gate]
) -> None:
    """Adds a line to a run's `progress.jsonl`, whose folder is made if need be.

    Args:
        folder: of the run.
        step: optimizer steps that are done.
        max_steps: of the whole run.
        metrics: by name; what is not finite becomes null.
        gates: one for each sharer.
    """
    numbers = {name: float(value) for name, value in sorted(metrics.items())}
    row: dict[str, Any] = {
        "time": round(time.time(), 1),
        "step": step,
        "max_steps": max_steps,
        "metrics": {name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "gates": [open_shares(gate) for gate in gates],
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / PROGRESS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def open_shares(gate: Gate) -> dict[str, dict[str, float]]:
    """For keys and for values the share of open heads by receiver layer, of the layers that may be fused."""
    shares = gate.is_open().float().mean(-1).tolist()
    return {
        PART_NAMES[part]: {str(layer): share for layer, share in zip(gate.receiver_layers, row)}
        for part, row in zip(gate.parts, shares)
    }
