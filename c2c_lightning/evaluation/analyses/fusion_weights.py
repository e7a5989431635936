"""Where the fuser speaks, and how loudly: its gates, its weights, and the size of what it adds.

Dimensions: P parts, L mapped layers, G open groups, B questions, H kv heads, N prompt tokens but the last.
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
from c2c_lightning.drawing.forest import INK, PALE
from c2c_lightning.drawing.style import PART_COLOURS, new_figure, save, styled
from c2c_lightning.evaluation.analyses.base import Analysis
from c2c_lightning.evaluation.asking.observing import Caches, Observer
from c2c_lightning.evaluation.report.formatting import NOTHING, percent
from c2c_lightning.evaluation.report.page import Section
from c2c_lightning.evaluation.report.results import BenchmarkResults
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
        text = [GATES_TEXT.format(open=int(is_open.sum()), all=len(is_open)), UPDATE_TEXT]
        figures = {
            "Gates at evaluation": save(draw_gates(gates), folder, "gates"),
            "Size of the update": save(
                draw_updates(fusers.fused_layers, measured["update"].numpy()), folder, "update_size"
            ),
        }
        weights = {i: measured[f"weight_{i}"].numpy() for i in range(len(gates)) if f"weight_{i}" in measured}
        if weights:
            text.append(WEIGHTS_TEXT)
            figures["Mean weight of every head"] = save(draw_weights(gates, weights), folder, "weights")
        table = layer_table(fusers, measured["update"].numpy(), weights)
        return Section("Gates, weights and updates", "\n\n".join(text), {"Gates and updates": table}, figures)


class FusionMeans(Metric):
    """Means over real tokens with a sharer token opposite, over all batches and ranks.

    Args:
        fusers: say which layers, heads and gates there are.
    """

    full_state_update = False

    def __init__(self, fusers: Fusers):
        super().__init__()
        self.layers = fusers.fused_layers
        self.groups = {}
        self.sizes = {}
        for i in fusers.open_sharers():
            fuser = fusers[i]
            gate, heads = fuser.gate, fuser.receiver.num_kv_heads
            self.groups[i] = [p * len(gate.receiver_layers) + layer for p, layer in gate.active()]
            self.sizes[i] = (len(gate.parts), len(gate.receiver_layers), heads)
            zeros = torch.zeros(len(self.groups[i]), heads, dtype=torch.float64)
            self.add_state(f"weight_{i}", zeros, dist_reduce_fx="sum")
            self.add_state(f"tokens_{i}", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("update_size", torch.zeros(2, len(self.layers), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, caches: Caches) -> None:
        spoken_to_BN = torch.zeros_like(caches.mask)
        for i in caches.sharers:
            aligned_BN = caches.opposite(i)
            spoken_to_BN |= aligned_BN
            if i in caches.weights:
                weight_GTH = caches.weights[i][:, aligned_BN]
                setattr(self, f"weight_{i}", getattr(self, f"weight_{i}") + weight_GTH.double().sum(1))
                setattr(self, f"tokens_{i}", getattr(self, f"tokens_{i}") + aligned_BN.sum())
        receiver, fused = (x.float().transpose(3, 4).flatten(4) for x in (caches.receiver, caches.fused))
        size_2LBN = (fused - receiver).norm(dim=-1) / receiver.norm(dim=-1).clamp(min=1e-12)
        self.update_size += size_2LBN[:, :, spoken_to_BN].double().sum(-1)
        self.tokens += spoken_to_BN.sum()

    def compute(self) -> dict[str, Tensor]:
        """`update` (2, L); `weight_<i>` (P, L, H) of sharers whose fuser has weights, NaN where a gate is closed."""
        means = {"update": (self.update_size / self.tokens.clamp(min=1)).float().cpu()}
        for i, groups in self.groups.items():
            tokens = getattr(self, f"tokens_{i}")
            if tokens > 0:
                parts, layers, heads = self.sizes[i]
                mean_GH = (getattr(self, f"weight_{i}") / tokens).float().cpu()
                filled = torch.full((parts * layers, heads), torch.nan)
                filled[groups] = mean_GH
                means[f"weight_{i}"] = filled.unflatten(0, (parts, layers))
        return means


def layer_table(fusers: Fusers, update_2L: np.ndarray, weights: dict[int, np.ndarray]) -> pd.DataFrame:
    """A row for every fused layer: open gates, size of the update, mean weight."""
    gates, rows = fusers.gates, []
    for at, layer in enumerate(fusers.fused_layers):
        row = {"receiver layer": str(layer)}
        for p, part in enumerate(PART_NAMES):
            states = []
            for gate in gates:
                if p not in gate.parts or layer not in gate.receiver_layers:
                    states.append("not fused")
                    continue
                is_open_H = gate.is_open()[gate.parts.index(p), gate.receiver_layers.index(layer)]
                share = f"{int(is_open_H.sum())} of {len(is_open_H)} open"
                states.append(share if len(is_open_H) > 1 else ("open" if is_open_H[0] else "closed"))
            row[f"{part}: gate"] = "; ".join(states)
            row[f"{part}: update"] = percent(update_2L[p, at])
            if weights:
                means = []
                for i, weight_PLH in weights.items():
                    gate = gates[i]
                    known = p in gate.parts and layer in gate.receiver_layers
                    weight_H = weight_PLH[gate.parts.index(p), gate.receiver_layers.index(layer)] if known else [np.nan]
                    means.append(NOTHING if np.isnan(weight_H).any() else f"{np.mean(weight_H):.3f}")
                row[f"{part}: mean weight"] = "; ".join(means)
        rows.append(row)
    return pd.DataFrame(rows)


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
    axis.set_xlabel("receiver layer")
    axis.set_ylabel("update, relative to receiver's own")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.xaxis.get_major_locator().set_params(integer=True)
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
                for head, layer in np.argwhere(
                    ~weight_HL.mask if np.ma.is_masked(weight_HL) else np.ones(weight_HL.shape)
                ):
                    value = weight_HL[head, layer]
                    ink = "white" if value < 0.6 else INK
                    axis.text(layer + 0.5, head + 0.5, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9)
    figure.colorbar(mesh, ax=axes, label="mean weight (grey: closed)")
    return figure


def layer_ticks(axis: matplotlib.axis.Axis, layers: list[int]) -> None:
    """Names cells of width 1 by their layers, leaving out some where they would not fit."""
    step = -(-len(layers) // 14)
    axis.set_ticks(np.arange(0, len(layers), step) + 0.5, [str(layer) for layer in layers[::step]])
