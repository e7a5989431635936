"""How many directions the caches use: the effective rank of keys and values.

Dimensions: L layers, B questions, H kv heads, N prompt tokens but the last, D head_dim, F = H * D features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric

from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing import colour, new_figure, save, styled
from c2c_lightning.evaluation.analyses.base import Analysis, layer_axis
from c2c_lightning.evaluation.asking.observing import Caches, Observer
from c2c_lightning.evaluation.report.findings import BenchmarkResults
from c2c_lightning.evaluation.report.page import Section
from c2c_lightning.fuser import PART_NAMES

TEXT = """\
The effective rank of a matrix is the exponential of the entropy of its singular values, scaled to sum to 1 \
(Roy & Vetterli 2007): the number of directions that it uses, weighted by how much. The matrix of a layer has \
a row for every prompt token of the benchmark and a column for every feature of its keys or values, so its \
rank is at most the number of features. The sharer's tokens are those that stand opposite the receiver's; \
`fused` is the receiver's cache after fusion.

Source: table 2 of the paper (arXiv 2510.03215): K 539/388/395 and V 689/532/560 for sharer/receiver/fused; \
fusion raises the receiver's effective rank."""


class EffectiveRank(Analysis, Observer):
    """The effective rank of the sharers', the receiver's and the fused cache, in every layer.

    Costs one matrix of features x features in double precision for each cache, layer and part.
    """

    name = "effective_rank"

    def metric(self, communicator: Communicator) -> Metric:
        fusers = communicator.fusers
        sizes = {name: (len(fusers.fused_layers), fusers[0].receiver.features) for name in ("receiver", "fused")}
        for i in fusers.open_sharers():
            sizes[f"sharer_{i}"] = (len(fusers.layer_maps[i]), fusers[i].sharer.features)
        return EffectiveRanks(sizes)

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        fusers = communicator.fusers
        ranks_2L = {name: ranks.numpy() for name, ranks in self.measured[results.benchmark.name].items()}
        layers = dict.fromkeys(("receiver", "fused"), fusers.fused_layers)
        layers |= {f"sharer_{i}": list(layer_map) for i, layer_map in enumerate(fusers.layer_maps)}
        sharers = [name for name in ranks_2L if name.startswith("sharer")]
        drawn = {}
        for name in (*sharers, "receiver", "fused"):
            label = name if len(sharers) > 1 else name.removesuffix("_0")
            drawn[label] = layers[name], ranks_2L[name]
        table = pd.DataFrame(index=pd.Index(["mean", *fusers.fused_layers], name="receiver layer"))
        for p, part in enumerate(PART_NAMES):
            for label, (own_layers, ranks) in drawn.items():
                table[f"{part}, {label}"] = pd.Series([ranks[p].mean(), *ranks[p]], ["mean", *own_layers])
        table = table.map("{:.1f}".format, na_action="ignore").fillna("").reset_index().astype(str)
        figures = {"Effective rank of keys and values in every fused layer": save(draw(drawn), folder, self.name)}
        return Section("Effective rank of the caches", TEXT, {"Effective rank": table}, figures)


@styled
def draw(ranks: dict[str, tuple[list[int], np.ndarray]]) -> Figure:
    """A panel for keys and one for values, a line for every cache: its layers and (2, L) ranks."""
    figure = new_figure(3.6)
    axes = figure.subplots(1, 2, sharey=True)
    for p, (axis, part) in enumerate(zip(axes, PART_NAMES)):
        for label, (layers, ranks_2L) in ranks.items():
            method = {"fused": "c2c"}.get(label, label.split("_")[0])
            style = {"fused": "-", "receiver": ":"}.get(label, "--")
            marker = {"fused": "o", "receiver": "s", "sharer_1": "v", "sharer_2": "D"}.get(label, "^")
            axis.plot(layers, ranks_2L[p], color=colour(method), linestyle=style, marker=marker, label=label)
        axis.set_title(part)
        layer_axis(axis.xaxis)
        axis.grid()
    axes[0].set_ylabel("effective rank")
    axes[0].set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ranks))
    return figure


class EffectiveRanks(Metric):
    """Sums X^T X, whose eigenvalues are the squares of X's singular values, over all batches and ranks."""

    full_state_update = False

    def __init__(self, sizes: dict[str, tuple[int, int]]):  # of every cache its layers and features
        super().__init__()
        self.names = list(sizes)
        for name, (layers, features) in sizes.items():
            zeros = torch.zeros(2, layers, features, features, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, caches: Caches) -> None:
        stacks = {"receiver": (caches.receiver, caches.mask), "fused": (caches.fused, caches.mask)}
        for i, stack in caches.sharers.items():
            stacks[f"sharer_{i}"] = (stack, caches.opposite(i))
        for name, (stack, mask_BN) in stacks.items():
            gram = getattr(self, name)
            for part in range(len(PART_NAMES)):
                for layer in range(stack.shape[1]):
                    x_TF = stack[part, layer].transpose(1, 2).flatten(2)[mask_BN].double()
                    gram[part, layer] += x_TF.T @ x_TF

    def compute(self) -> dict[str, Tensor]:
        """For every cache (2, L)."""
        ranks = {}
        for name in self.names:
            values_2LF = torch.linalg.eigvalsh(getattr(self, name)).clamp(min=0).sqrt()
            share_2LF = values_2LF / values_2LF.sum(-1, keepdim=True)
            ranks[name] = torch.special.entr(share_2LF).sum(-1).exp().cpu()
        return ranks
