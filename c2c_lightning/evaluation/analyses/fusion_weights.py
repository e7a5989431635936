"""Where the fuser speaks, and how loudly: its gates, its weights, and the size of what it adds.

Dimensions: P parts, L mapped layers, G open pairs of part and layer, B questions, H kv heads, N prompt tokens but the last.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from torch import Tensor
from torchmetrics import Metric

from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing import INK, PALE, PART_COLOURS, new_figure, save, styled
from c2c_lightning.evaluation.analyses.base import Analysis, layer_axis
from c2c_lightning.evaluation.asking.observing import Caches, Observer
from c2c_lightning.evaluation.report.findings import BenchmarkResults
from c2c_lightning.evaluation.report.page import NOTHING, Section, percent
from c2c_lightning.fuser import PART_NAMES, Fusers, Gate

GATES_TEXT = """\
A gate is open at evaluation if its logit is positive; a layer whose gate is closed is left as the receiver \
made it. {open} of {all} gates are open. The paper (arXiv 2510.03215) reports 98% after training on \
OpenHermes and 53% after training on MMLU's auxiliary questions."""
UPDATE_TEXT = """\
The size of the update is the length of what fusion adds to a token's keys or values (all heads together), \
relative to the length of the receiver's own, averaged over all prompt tokens that have a sharer token \
opposite. Where it is near 0 though a gate is open, hardly anything is added."""
WEIGHTS_TEXT = """\
The weight is the fuser's own scalar in [0, 1] for every token and head, by which its update is multiplied \
(the weight of the paper's fuser); shown is its mean over the same tokens."""


class FusionWeights(Analysis, Observer):
    """Gates at evaluation, the fuser's mean weight for every layer and head, and the size of its updates."""

    name = "fusion_weights"

    def metric(self, communicator: Communicator) -> Metric:
        return FusionMeans(communicator.fusers)

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        measured = self.measured[results.benchmark.name]
        fusers, gates = communicator.fusers, communicator.fusers.gates
        is_open = torch.cat([gate.is_open().flatten() for gate in gates])
        update_2L = measured["update"].numpy()
        weights = {i: measured[f"weight_{i}"].numpy() for i in range(len(gates)) if f"weight_{i}" in measured}
        text = [GATES_TEXT.format(open=int(is_open.sum()), all=len(is_open)), UPDATE_TEXT]
        figures = {
            "Gates at evaluation": save(draw_gates(gates), folder, "gates"),
            "Size of the update": save(draw_updates(fusers.fused_layers, update_2L), folder, "update_size"),
        }
        if weights:
            text.append(WEIGHTS_TEXT)
            figures["Mean weight of every head"] = save(draw_weights(gates, weights), folder, "weights")
        tables = {"Gates and updates": layer_table(fusers, update_2L, weights)}
        return Section("Gates, weights and updates", "\n\n".join(text), tables, figures)


class FusionMeans(Metric):
    """Means over real tokens with a sharer token opposite, over all batches and ranks."""

    full_state_update = False

    def __init__(self, fusers: Fusers):
        super().__init__()
        self.open = {}
        for i in fusers.open_sharers():
            gate, heads = fusers[i].gate, fusers[i].receiver.num_kv_heads
            sum_PLH = torch.full((len(gate.parts), len(gate.receiver_layers), heads), torch.nan, dtype=torch.float64)
            self.open[i] = tuple(map(list, zip(*gate.active())))
            sum_PLH[self.open[i]] = 0.0
            self.add_state(f"weight_{i}", sum_PLH, dist_reduce_fx="sum")
            self.add_state(f"tokens_{i}", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        update_2L = torch.zeros(2, len(fusers.fused_layers), dtype=torch.float64)
        self.add_state("update_size", update_2L, dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, caches: Caches) -> None:
        spoken_to_BN = torch.zeros_like(caches.mask)
        for i in caches.sharers:
            aligned_BN = caches.opposite(i)
            spoken_to_BN |= aligned_BN
            if i in caches.weights:
                weight_GTH = caches.weights[i][:, aligned_BN]
                getattr(self, f"weight_{i}")[self.open[i]] += weight_GTH.double().sum(1)
                setattr(self, f"tokens_{i}", getattr(self, f"tokens_{i}") + aligned_BN.sum())
        receiver, fused = (x.float().transpose(3, 4).flatten(4) for x in (caches.receiver, caches.fused))
        size_2LBN = (fused - receiver).norm(dim=-1) / receiver.norm(dim=-1).clamp(min=1e-12)
        self.update_size += size_2LBN[:, :, spoken_to_BN].double().sum(-1)
        self.tokens += spoken_to_BN.sum()

    def compute(self) -> dict[str, Tensor]:
        """`update` (2, L); `weight_<i>` (P, L, H) of sharers whose fuser has weights, NaN where a gate is closed."""
        means = {"update": (self.update_size / self.tokens.clamp(min=1)).float().cpu()}
        for i in self.open:
            tokens = getattr(self, f"tokens_{i}")
            if tokens > 0:
                means[f"weight_{i}"] = (getattr(self, f"weight_{i}") / tokens).float().cpu()
        return means


def layer_table(fusers: Fusers, update_2L: np.ndarray, weights: dict[int, np.ndarray]) -> pd.DataFrame:
    """A row for every fused layer: open gates, size of the update, mean weight."""
    rows = []
    for at, layer in enumerate(fusers.fused_layers):
        row = {"receiver layer": str(layer)}
        for p, part in enumerate(PART_NAMES):
            states, means = [], []
            for i, gate in enumerate(fusers.gates):
                is_fused = p in gate.parts and layer in gate.receiver_layers
                place = (gate.parts.index(p), gate.receiver_layers.index(layer)) if is_fused else None
                states.append(gate_state(gate.is_open()[place]) if is_fused else "not fused")
                if i in weights:
                    weight = weights[i][place].mean() if is_fused else np.nan
                    means.append(NOTHING if np.isnan(weight) else f"{weight:.3f}")
            row |= {f"{part}: gate": "; ".join(states), f"{part}: update": percent(update_2L[p, at])}
            if means:
                row[f"{part}: mean weight"] = "; ".join(means)
        rows.append(row)
    return pd.DataFrame(rows)


def gate_state(is_open_H: Tensor) -> str:
    """How many of the heads of a layer are open; just whether it is, if they have one gate."""
    if len(is_open_H) > 1:
        return f"{int(is_open_H.sum())} of {len(is_open_H)} open"
    return "open" if is_open_H[0] else "closed"


@styled
def draw_gates(gates: list[Gate]) -> Figure:
    """A panel for each sharer; layers to the right, for keys and for values a row or one for every head."""
    rows = sum(len(gate.parts) * gate.logit.shape[-1] for gate in gates)
    figure = new_figure(0.3 + 0.8 * len(gates) + 0.18 * max(rows, 3 * len(gates)))
    colours = ListedColormap(["#ffffff", PART_COLOURS["keys"]])
    for axis, (i, gate) in zip(figure.subplots(len(gates), squeeze=False)[:, 0], enumerate(gates)):
        open_RL = gate.is_open().transpose(1, 2).flatten(0, 1).cpu().numpy()
        heads = gate.logit.shape[-1]
        axis.pcolormesh(open_RL, cmap=colours, vmin=0, vmax=1, edgecolors=PALE, linewidth=0.6)
        axis.set_yticks((np.arange(len(gate.parts)) + 0.5) * heads, [PART_NAMES[p] for p in gate.parts])
        if len(gate.parts) > 1:
            axis.axhline(heads, color=INK, linewidth=2)
        axis.invert_yaxis()
        layer_ticks(axis.xaxis, gate.receiver_layers)
        axis.set_xlabel("receiver layer" if heads == 1 else f"receiver layer (a row for each of {heads} heads)")
        if len(gates) > 1:
            axis.set_title(f"sharer {i}")
    states = zip(colours.colors[::-1], ("open", "closed"))
    patches = [Patch(facecolor=face, edgecolor=PALE, label=state) for face, state in states]
    figure.legend(handles=patches, loc="outside right upper")
    return figure


@styled
def draw_updates(layers: list[int], update_2L: np.ndarray) -> Figure:
    """A line for keys and one for values over the fused layers."""
    figure = new_figure(3.4)
    axis = figure.subplots()
    for part, marker, sizes in zip(PART_NAMES, "os", update_2L):
        axis.plot(layers, sizes, color=PART_COLOURS[part], marker=marker, label=part)
    layer_axis(axis.xaxis)
    axis.set_ylabel("update, relative to receiver's own")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylim(bottom=0)
    axis.grid()
    axis.legend()
    return figure


@styled
def draw_weights(gates: list[Gate], weights: dict[int, np.ndarray]) -> Figure:
    """Layers to the right, heads upwards, a panel for keys and one for values of each sharer."""
    layers, heads = (max(w.shape[k] for w in weights.values()) for k in (1, 2))
    figure = new_figure(1.0 + len(weights) * max(1.9, 0.7 + 0.28 * heads))
    axes = figure.subplots(len(weights), 2, squeeze=False)
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#dddddd")
    mesh = None
    for row, (i, weight_PLH) in zip(axes, weights.items()):
        gate = gates[i]
        for p, (axis, part) in enumerate(zip(row, PART_NAMES)):
            axis.set_title(part if len(weights) == 1 else f"sharer {i}: {part}")
            if p not in gate.parts:
                axis.text(0.5, 0.5, "not fused", ha="center", va="center", transform=axis.transAxes)
                axis.set_axis_off()
                continue
            weight_HL = np.ma.masked_invalid(weight_PLH[gate.parts.index(p)].T)
            mesh = axis.pcolormesh(weight_HL, cmap=colours, vmin=0, vmax=1)
            layer_ticks(axis.xaxis, gate.receiver_layers)
            axis.set_yticks(np.arange(heads) + 0.5, [str(head) for head in range(heads)])
            axis.set_xlabel("receiver layer")
            axis.set_ylabel("kv head")
            if layers * heads <= 40:
                for head, layer in np.argwhere(~np.ma.getmaskarray(weight_HL)):
                    value = weight_HL[head, layer]
                    ink = "white" if value < 0.6 else INK
                    axis.text(layer + 0.5, head + 0.5, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9)
    figure.colorbar(mesh, ax=axes, label="mean weight (grey: closed)")
    return figure


def layer_ticks(axis: matplotlib.axis.Axis, layers: list[int]) -> None:
    """Names cells of width 1 by their layers, leaving out some where they would not fit."""
    step = -(-len(layers) // 14)
    axis.set_ticks(np.arange(0, len(layers), step) + 0.5, [str(layer) for layer in layers[::step]])
