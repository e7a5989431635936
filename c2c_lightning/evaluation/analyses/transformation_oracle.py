"""The oracle that motivates the fuser: can a sharer's cache be turned into the receiver's at all?

Dimensions: L chosen layers, G = 2 * L groups (keys, then values, of every layer), B questions, N prompt tokens but the
last, T sampled tokens, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.utils.data import BatchSampler, RandomSampler
from torchmetrics import Metric

from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing import colour, new_figure, save, styled
from c2c_lightning.errors import UserError, check_at_least
from c2c_lightning.evaluation.analyses.base import Analysis
from c2c_lightning.evaluation.asking.observing import Caches, Observer
from c2c_lightning.evaluation.report.findings import BenchmarkResults
from c2c_lightning.evaluation.report.page import Section, percent
from c2c_lightning.fuser import PART_NAMES
from c2c_lightning.fuser.stacked import StackedBlock, StackedLinear

DRAWN = 250  # tokens of every kind in a picture
HELD_OUT = 0.25  # share of the questions
TEXT = """\
A small network of the fuser's shape, one for each layer and part, is trained to map the sharer's cache of a \
token to the receiver's own cache of the token opposite (mean squared error), on {train} prompt tokens of one \
part of the questions, and measured on {held_out} of the others. Unexplained variance is the mean squared \
error relative to the variance of the receiver's cache (1 - R²): at 0% the sharer's cache says all that the \
receiver's does, at 100% the mapping is no better than the mean token. No answer is asked for: that a cache \
can be mapped is what C2C needs, not what it gains.

The pictures are t-SNE of held-out tokens in layer {layer}: the sharer's cache (source), the receiver's \
(target) and the mapped one (transformed). {padding}In the full space, not the picture: the nearest of all source \
and target tokens is a target token for {near_transformed} of the transformed tokens, and for {near_source} of \
the source tokens."""
PADDING = """\
The two models' caches have {source} and {target} features; the narrower ones are filled up with zeros, which \
changes no distance within a cache. """


class TransformationOracle(Analysis, Observer):
    """How well a network maps the sharer's cache to the receiver's, with t-SNE pictures.

    Args:
        tokens: that are sampled from a benchmark, for training and measuring together.
        num_layers: fused layers that are looked at, evenly spaced; all if there are fewer.
        hidden: width of the network.
        epochs: of its training.
        sharer: whose cache is mapped, of several.
        seed: of sample, training and pictures.

    Raises:
        UserError: a number that is too small.
    """

    def __init__(
        self,
        tokens: int = 2048,
        num_layers: int = 8,
        hidden: int = 256,
        epochs: int = 40,
        sharer: int = 0,
        seed: int = 0,
    ):
        check_at_least(16, "{} of TransformationOracle", tokens=tokens)
        check_at_least(1, "{} of TransformationOracle", num_layers=num_layers, hidden=hidden, epochs=epochs)
        self.tokens, self.num_layers, self.hidden, self.epochs = tokens, num_layers, hidden, epochs
        self.sharer, self.seed = sharer, seed
        # A sample that was drawn otherwise must not be taken for its own when an evaluation goes on.
        self.name = f"transformation_oracle_{tokens}_tokens_{num_layers}_layers_sharer_{sharer}_seed_{seed}"

    def metric(self, communicator: Communicator) -> Metric:
        return TokenSample(self.sharer, self.layers(communicator), communicator, self.tokens, self.seed)

    def check(self, communicator: Communicator, asked: Sequence[str]) -> None:
        number = len(communicator.models.sharers)
        if self.sharer not in range(number):
            raise UserError(f"sharer of TransformationOracle is {self.sharer}: the fuser has {number}, counted from 0.")

    def layers(self, communicator: Communicator) -> list[int]:
        """The receiver layers that are looked at."""
        mapped = list(communicator.fusers.layer_maps[self.sharer])
        places = np.linspace(0, len(mapped) - 1, min(self.num_layers, len(mapped))).round().astype(int)
        return [mapped[place] for place in places]

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        sample = self.measured[results.benchmark.name]
        held_out = sample["held_out"]
        if held_out.sum() < 2 or (~held_out).sum() < 2:
            return None
        layers = self.layers(communicator)
        device = communicator.models.receiver.device
        source_TGF, target_TGF = (sample[name].float().to(device) for name in ("source", "target"))
        mapping = train(source_TGF[~held_out], target_TGF[~held_out], self.hidden, self.epochs, self.seed)
        with torch.no_grad():
            test_source, test_target = source_TGF[held_out], target_TGF[held_out]
            mapped = mapping(test_source)
            unexplained_2L = unexplained(mapped, test_target).unflatten(0, (2, len(layers))).cpu().numpy()
        table = pd.DataFrame({"receiver layer": ["mean", *map(str, layers)]})
        for part, values in zip(PART_NAMES, unexplained_2L):
            table[f"{part}: unexplained variance"] = [percent(values.mean()), *map(percent, values)]
        middle, clouds = len(layers) // 2, {}
        for p, part in enumerate(PART_NAMES):
            sets = (x[:, p * len(layers) + middle] for x in (test_source, test_target, mapped))
            clouds[part] = padded([x.double().cpu().numpy() for x in sets])
        near_transformed, near_source = (
            " and ".join(f"{share:.0%} ({part})" for part, share in zip(clouds, shares))
            for shares in zip(*(near_target(*cloud) for cloud in clouds.values()))
        )
        widths = source_TGF.shape[-1], target_TGF.shape[-1]
        text = TEXT.format(
            train=int((~held_out).sum()),
            held_out=int(held_out.sum()),
            layer=layers[middle],
            padding="" if widths[0] == widths[1] else PADDING.format(source=widths[0], target=widths[1]),
            near_transformed=near_transformed,
            near_source=near_source,
        )
        tables = {"Variance of the receiver's cache that the sharer's leaves unexplained": table}
        figure = save(draw(clouds, self.seed), folder, "transformation_oracle")
        caption = f"t-SNE of held-out tokens, layer {layers[middle]}"
        return Section("Cache transformation (oracle)", text, tables, {caption: figure})


def padded(sets: list[np.ndarray]) -> list[np.ndarray]:
    """Sets of tokens in one space: the narrower ones get features that are always zero."""
    width = max(x.shape[1] for x in sets)
    return [np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in sets]


def near_target(source: np.ndarray, target: np.ndarray, transformed: np.ndarray) -> tuple[float, float]:
    """For which share of the transformed and of the source tokens the nearest other one is a target token."""
    everything = NearestNeighbors().fit(np.concatenate([source, target]))
    of_transformed = everything.kneighbors(transformed, n_neighbors=1, return_distance=False)[:, 0]
    of_source = everything.kneighbors(n_neighbors=1, return_distance=False)[: len(source), 0]  # itself left out
    return float((of_transformed >= len(source)).mean()), float((of_source >= len(source)).mean())


class TokenSample(Metric):
    """A sample of tokens with a sharer token opposite, the same however questions are spread over ranks.

    Every token draws a number that depends on its question, and the lowest ones are kept, `tokens` of them; so does
    every question, for being held out. `layers` are the receiver's.
    """

    full_state_update = False

    def __init__(self, sharer: int, layers: list[int], communicator: Communicator, tokens: int, seed: int):
        super().__init__()
        self.sharer, self.tokens, self.seed = sharer, tokens, seed
        fusers, dtype, groups = communicator.fusers, communicator.models.receiver.dtype, 2 * len(layers)
        mapped, fuser = list(fusers.layer_maps[sharer]), fusers[sharer]
        self.sharer_rows = [mapped.index(layer) for layer in layers]
        self.receiver_rows = [fusers.fused_layers.index(layer) for layer in layers]
        # Of fixed size, unlike torchmetrics' lists, so that memory is bounded and all ranks' are alike.
        self.add_state("drawn", torch.full((tokens,), torch.inf, dtype=torch.float64), dist_reduce_fx="cat")
        self.add_state("held_out", torch.zeros(tokens, dtype=torch.bool), dist_reduce_fx="cat")
        for name, features in (("source", fuser.sharer.features), ("target", fuser.receiver.features)):
            self.add_state(name, torch.zeros(tokens, groups, features, dtype=dtype), dist_reduce_fx="cat")

    def update(self, caches: Caches) -> None:
        if self.sharer not in caches.sharers:
            return  # all its gates are closed
        mask_BN = caches.opposite(self.sharer)
        drawn, held_out = [], []
        for item, mask_N in zip(caches.questions.items, mask_BN.cpu()):
            rng = np.random.default_rng([self.seed, *item.id.encode()])
            number = int(mask_N.sum())
            held_out += [rng.random() < HELD_OUT] * number
            drawn.append(rng.random(number))
        sharer = caches.sharers[self.sharer][:, self.sharer_rows]
        receiver = caches.receiver[:, self.receiver_rows]
        source, target = (s.flatten(0, 1).permute(1, 3, 0, 2, 4).flatten(3)[mask_BN] for s in (sharer, receiver))
        new = {
            "drawn": torch.from_numpy(np.concatenate(drawn)),
            "held_out": torch.tensor(held_out),
            "source": source,
            "target": target,
        }
        every = {name: torch.cat([getattr(self, name), x.to(getattr(self, name))]) for name, x in new.items()}
        for name, state in self.lowest(every).items():
            setattr(self, name, state)

    def compute(self) -> dict[str, Tensor]:
        """`source` and `target` (T, G, F), and (T,) bool whether a token is `held_out`."""
        states = {name: getattr(self, name) for name in ("drawn", "held_out", "source", "target")}
        if states["drawn"].ndim > 1:  # of several ranks
            states = {name: state.flatten(0, 1) for name, state in states.items()}
        sample = self.lowest(states)
        is_token = sample.pop("drawn").isfinite()
        return {name: state[is_token].cpu() for name, state in sample.items()}

    def lowest(self, states: dict[str, Tensor]) -> dict[str, Tensor]:
        order = states["drawn"].argsort(stable=True)[: self.tokens]
        return {name: state[order] for name, state in states.items()}


class Mapping(nn.Module):
    """A network for each group, of the fuser's shape; the tokens of the training say how features are scaled."""

    def __init__(self, source_TGF: Tensor, target_TGF: Tensor, hidden: int):
        super().__init__()
        _, groups, features = source_TGF.shape
        self.input = StackedLinear(groups, features, hidden)
        self.block = StackedBlock(groups, hidden, hidden, dropout=0.0)
        self.output = StackedLinear(groups, hidden, target_TGF.shape[2])
        self.register_buffer("source_mean_GF", source_TGF.mean(0))
        self.register_buffer("source_std_GF", source_TGF.std(0).clamp(min=1e-6))
        self.register_buffer("target_mean_GF", target_TGF.mean(0))
        # One scale for a whole group, so that the error is that of the cache itself.
        spread_G = (target_TGF - target_TGF.mean(0)).square().mean((0, 2)).sqrt()
        self.register_buffer("target_spread_G1", spread_G.clamp(min=1e-6)[:, None])

    def forward(self, source_TGF: Tensor) -> Tensor:
        x_GTF = ((source_TGF - self.source_mean_GF) / self.source_std_GF).transpose(0, 1)
        out_TGF = self.output(self.block(self.input(x_GTF))).transpose(0, 1)
        return self.target_mean_GF + self.target_spread_G1 * out_TGF


def train(source_TGF: Tensor, target_TGF: Tensor, hidden: int, epochs: int, seed: int) -> Mapping:
    """A mapping trained on tokens, on their device, whatever mode the caller is in."""
    with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
        # What came about in inference mode cannot be trained on; a copy can.
        source_TGF, target_TGF = source_TGF.clone(), target_TGF.clone()
        torch.manual_seed(seed)
        mapping = Mapping(source_TGF, target_TGF, hidden).to(source_TGF.device)
        order = RandomSampler(source_TGF, generator=torch.Generator().manual_seed(seed))
        batches = BatchSampler(order, 256, drop_last=False)
        optimizer = torch.optim.AdamW(mapping.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
        for _ in range(epochs):
            for rows in batches:
                optimizer.zero_grad()
                error = mapping(source_TGF[rows]) - target_TGF[rows]
                (error / mapping.target_spread_G1).square().mean().backward()
                optimizer.step()
                schedule.step()
    return mapping.eval()


def unexplained(mapped_TGF: Tensor, target_TGF: Tensor) -> Tensor:
    """(G,) mean squared error relative to the variance of the target: 1 - R²."""
    error_G = F.mse_loss(mapped_TGF, target_TGF, reduction="none").mean((0, 2))
    variance_G = (target_TGF - target_TGF.mean(0)).square().mean((0, 2))
    return error_G / variance_G.clamp(min=1e-12)


@styled
def draw(clouds: dict[str, list[np.ndarray]], seed: int) -> Figure:
    figure = new_figure(4.6)
    styles = (("source (sharer)", "sharer", "^"), ("target (receiver)", "receiver", "o"), ("transformed", "c2c", "x"))
    for axis, (part, sets) in zip(figure.subplots(1, 2), clouds.items()):
        shown = min(DRAWN, len(sets[0]))
        places = TSNE(
            perplexity=min(30, (3 * shown - 1) / 3), init="pca", max_iter=500, random_state=seed
        ).fit_transform(np.concatenate([x[:shown] for x in sets]))
        for k, (label, method, marker) in enumerate(styles):
            x, y = places[k * shown : (k + 1) * shown].T
            axis.scatter(x, y, s=16, color=colour(method), marker=marker, alpha=0.7, linewidths=1, label=label)
        axis.set_title(part)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
