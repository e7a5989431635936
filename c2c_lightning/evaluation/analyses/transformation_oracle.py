"""The oracle that motivates the fuser: can a sharer's cache be turned into the receiver's at all?

Dimensions: L chosen layers, G = 2 * L groups (keys, then values, of every layer), T sampled tokens, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from torchmetrics import Metric

from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing.style import colour, new_figure, save, styled
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses.base import Analysis
from c2c_lightning.evaluation.analyses.cache_mapping import train, unexplained
from c2c_lightning.evaluation.analyses.token_sample import TokenSample
from c2c_lightning.evaluation.asking.observing import Observer
from c2c_lightning.evaluation.report.formatting import percent
from c2c_lightning.evaluation.report.page import Section
from c2c_lightning.evaluation.report.results import BenchmarkResults
from c2c_lightning.fuser import PART_NAMES

DRAWN = 250  # tokens of every kind in a picture
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
        for key, value, least in (
            ("tokens", tokens, 16),
            ("num_layers", num_layers, 1),
            ("hidden", hidden, 1),
            ("epochs", epochs, 1),
        ):
            if value < least:
                raise UserError(f"{key} of TransformationOracle is {value}: give at least {least}.")
        self.tokens, self.num_layers, self.hidden, self.epochs = tokens, num_layers, hidden, epochs
        self.sharer, self.seed = sharer, seed
        # A sample that was drawn otherwise must not be taken for its own when an evaluation goes on.
        self.name = f"transformation_oracle_{tokens}_tokens_{num_layers}_layers_sharer_{sharer}_seed_{seed}"

    def metric(self, communicator: Communicator) -> Metric:
        layers = self.layers(communicator)
        fuser = communicator.fusers[self.sharer]
        return TokenSample(
            self.sharer, layers, communicator, (fuser.sharer.features, fuser.receiver.features), self.tokens, self.seed
        )

    def check(self, communicator: Communicator, asked: Sequence[str]) -> None:
        if self.sharer not in range(len(communicator.models.sharers)):
            raise UserError(
                f"sharer of TransformationOracle is {self.sharer}: the fuser has {len(communicator.models.sharers)}, "
                "counted from 0."
            )

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
        table = pd.DataFrame(
            {
                "receiver layer": ["mean", *map(str, layers)],
                **{
                    f"{part}: unexplained variance": [percent(values.mean()), *map(percent, values)]
                    for part, values in zip(PART_NAMES, unexplained_2L)
                },
            }
        )
        middle = len(layers) // 2
        clouds = {
            part: padded(
                [x[:, p * len(layers) + middle].double().cpu().numpy() for x in (test_source, test_target, mapped)]
            )
            for p, part in enumerate(PART_NAMES)
        }
        near = {part: near_target(*cloud) for part, cloud in clouds.items()}
        near_transformed, near_source = (
            " and ".join(f"{near[part][k]:.0%} ({part})" for part in PART_NAMES) for k in range(2)
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
        figure = draw(clouds, self.seed)
        caption = f"t-SNE of held-out tokens, layer {layers[middle]}"
        return Section(
            "Cache transformation (oracle)",
            text,
            {"Variance of the receiver's cache that the sharer's leaves unexplained": table},
            {caption: save(figure, folder, "transformation_oracle")},
        )


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


@styled
def draw(clouds: dict[str, list[np.ndarray]], seed: int) -> Figure:
    """A panel for each part with its source, target and transformed tokens."""
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
