"""A picture of the gates over training: which layers talk."""

from __future__ import annotations

import lightning as L
import matplotlib
import numpy as np
import torch
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from c2c_lightning.fuser import PART_NAMES
from c2c_lightning.models import Batch
from c2c_lightning.training.module import C2CModule
from c2c_lightning.training.run import Run, recorded

EVERY = 5  # optimizer steps between two columns of the picture, doubled when there are too many of them
MOST_COLUMNS = 500  # more than the picture can show; they stand in every checkpoint


class GateMap(L.Callback):
    """Notes the sigmoid of every gate logit and draws it as `gates.png` in the run's folder."""

    def on_train_batch_end(
        self, trainer: L.Trainer, module: C2CModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        for run in recorded(trainer):
            note(run, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, module: C2CModule) -> None:
        for run in recorded(trainer):
            if run.gate_steps:
                file = run.folder / "gates.png"
                draw(run).savefig(file, dpi=150)
                run.track(file)


def note(run: Run, step: int) -> None:
    """Adds a run's gates at an optimizer step to its history, of which every second column goes when it is too long."""
    steps, history = run.gate_steps, run.gate_history
    while len(steps) >= MOST_COLUMNS:
        del steps[::2], history[::2]
    # Columns that were left are at multiples of the new distance.
    distance = max(EVERY, steps[1] - steps[0]) if len(steps) > 1 else EVERY
    if step % distance == 0 and step not in steps[-1:]:
        steps.append(step)
        history.append([gate.logit.detach().float().sigmoid().cpu() for gate in run.fusers.gates])


def draw(run: Run) -> Figure:
    """Layers upwards, training to the right, one panel for keys and one for values of each sharer."""
    gates, steps, history = run.fusers.gates, run.gate_steps, run.gate_history
    num_layers = max(len(gate.receiver_layers) * gate.logit.shape[-1] for gate in gates)
    size = (10, 1.7 + len(gates) * max(1.6, 0.22 * num_layers))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(gates), 2, squeeze=False, sharex=True)
    edges = np.append(steps, 2 * steps[-1] - steps[-2] if len(steps) > 1 else steps[-1] + 1)
    # White is undecided; blue is open at evaluation, red closed.
    norm, colours = TwoSlopeNorm(0.5, 0.0, 1.0), matplotlib.colormaps["RdBu"]
    mesh = None
    for row, gate in enumerate(gates):
        heads = gate.logit.shape[-1]
        for part, name in enumerate(PART_NAMES):
            axis = axes[row, part]
            axis.set_title(name if len(gates) == 1 else f"sharer {row}: {name}")
            if part not in gate.parts:
                axis.text(0.5, 0.5, "not fused", ha="center", va="center", transform=axis.transAxes)
                axis.set_yticks([])
                continue
            open_GT = torch.stack([column[row][gate.parts.index(part)].flatten() for column in history], dim=1)
            mesh = axis.pcolormesh(edges, np.arange(len(open_GT) + 1), open_GT.numpy(), cmap=colours, norm=norm)
            is_open = gate.is_open()[gate.parts.index(part)].sum().item()
            axis.set_title(f"{axis.get_title()}: {is_open:.0f} of {len(open_GT)} open")
            ticks = np.arange(len(gate.receiver_layers))
            axis.set_yticks((ticks + 0.5) * heads, [str(layer) for layer in gate.receiver_layers])
            axis.set_xlabel("optimizer step")
        axes[row, 0].set_ylabel("receiver layer" if heads == 1 else f"receiver layer ({heads} heads each)")
    if mesh is not None:
        figure.colorbar(mesh, ax=axes, label="sigmoid(gate logit)", ticks=[0, 0.5, 1])
    return figure
