"""How near the receiver that is told a text by slots comes to the one that reads it, before either has answered.

Dimensions: L receiver layers, B questions, N prompt tokens, R tokens that are read again, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from transformers import DynamicCache, PreTrainedModel

from c2c_lightning import drawing
from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing import Estimate
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses.base import TextAnalysis, layer_axis
from c2c_lightning.evaluation.asking.controls import NothingSaid
from c2c_lightning.evaluation.asking.decoding import Prefill
from c2c_lightning.evaluation.asking.methods import C2C, ReadsIt, of_receiver
from c2c_lightning.evaluation.asking.observing import Caches, Observer
from c2c_lightning.evaluation.report.findings import BenchmarkResults
from c2c_lightning.evaluation.report.page import Section, with_interval
from c2c_lightning.evaluation.report.statistics import accuracy
from c2c_lightning.models.cache import logits_at, position_ids, read_stack

TEXT = """\
The receiver that is told a text by slots, beside the one that reads the text itself: the cosine of what their attention \
gives, in every layer, at the tokens of the prompt that follow the text; and at the first token of the response the divergence \
KL(reads || told) of their distributions and how often both choose the same token. Whatever the slots say, the two have the \
same question before them, so that slots that say nothing (`nothing_said`) are what the cosine has to be compared with. \
A fuser beside the mapper is left out. Means over {number} questions, with 95% intervals.

Cosines are high where slots imitate the text, and arXiv 2608.03893 reports that they tell what is kept where the R² of keys and \
values does not. A mapper that was trained for answers may come to them by other attention: then KL says what cosines do not."""
TOLD = (C2C(), NothingSaid())


class Fidelity(TextAnalysis, Observer):
    """How near slots bring the receiver to what it makes of the prompt where it reads the text itself.

    Costs no answers: the receiver's prompts are read with the text, with its slots, and with slots that say nothing.
    """

    name = "fidelity"
    needs_fusers = False

    def check(self, communicator: Communicator, asked: Sequence[str]) -> None:
        super().check(communicator, asked)
        model, layers = communicator.models.receiver, communicator.models.receiver_shape.num_layers
        if len(attentions(model)) != layers:
            raise UserError(
                f"trainer.callbacks has Fidelity, but of the {layers} layers of {type(model).__name__} it finds the attention "
                f"of {len(attentions(model))}: leave it out."
            )

    def metric(self, communicator: Communicator) -> Metric:
        return Nearness(communicator.models.receiver_shape.num_layers)

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        questions = self.measured[results.benchmark.name]
        if not len(questions["kl"]):
            return None

        def mean(values_B: Tensor) -> Estimate:  # sorted, for ranks give questions in another order
            return accuracy(np.sort(values_B.numpy()), results.seed)

        first, by_layer = [], {}
        for i, method in enumerate(TOLD):
            label = drawing.shown(method.name)
            cosines_BL = questions["cosine"][:, i]
            by_layer[label] = [mean(cosines_B) for cosines_B in cosines_BL.T]
            row = {"": label, "cosine, mean of layers": shown(mean(cosines_BL.mean(1)))}
            row["KL, nats"] = shown(mean(questions["kl"][:, i]))
            first.append(row | {"same token": with_interval(mean(questions["same"][:, i]), "accuracy")})
        layers = {"receiver layer": map(str, range(questions["cosine"].shape[2]))}
        cells = {label: map(shown, cosines) for label, cosines in by_layer.items()}
        caption = "Cosine of attention outputs behind the text"
        tables = {"Against reading the text": pd.DataFrame(first), caption: pd.DataFrame(layers | cells)}
        figures = {
            f"{caption}, with those of a receiver that reads it": drawing.save(draw(by_layer), folder, self.name)
        }
        return Section("Fidelity before use", TEXT.format(number=len(questions["kl"])), tables, figures)


class Nearness(Metric):
    """Of every question with a text how near each of `TOLD` comes to reading it: (L) cosines, KL, and the same token."""

    full_state_update = False

    def __init__(self, num_layers: int):
        super().__init__()
        self.width = num_layers + 2
        # Flat, as torchmetrics gathers those of a rank without questions.
        self.add_state("rows", [], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, caches: Caches) -> None:
        asking, text = caches.asking, caches.batch.private
        if text is None:
            self.rows.append(torch.zeros(0, device=self.device))
            return
        places, _ = caches.batch.behind_texts()
        rest_B = torch.bincount(places // (caches.batch.prompt_ids.shape[1] - 1), minlength=len(text.numbers))
        reads, reads_log_BV = read_again(ReadsIt().prefill(asking), rest_B)
        is_rest_BR = torch.arange(reads.shape[2], device=rest_B.device) <= rest_B[:, None]
        found = []
        for method in TOLD:
            reading = method.heard(asking)
            told, log_BV = read_again(of_receiver(reading, reading.receiver_cache()), rest_B)
            cosine_LBR = F.cosine_similarity(told, reads, dim=-1).where(is_rest_BR, 0)
            kl_B = F.kl_div(log_BV, reads_log_BV, reduction="none", log_target=True).sum(-1)
            same_B = (log_BV.argmax(-1) == reads_log_BV.argmax(-1)).float()
            found += [*(cosine_LBR.sum(-1) / is_rest_BR.sum(-1)), kl_B, same_B]
        self.rows.append(torch.stack(found, dim=1)[text.numbers > 0].flatten())

    def compute(self) -> dict[str, Tensor]:
        """`cosine` (B, 2, L), `kl` (B, 2) in nats, `same` (B, 2), of questions with a text, for each of `TOLD`."""
        found = dim_zero_cat(self.rows).view(-1, len(TOLD), self.width).double().cpu()
        return {"cosine": found[..., :-2], "kl": found[..., -2], "same": found[..., -1]}


def attentions(model: PreTrainedModel) -> list[nn.Module]:
    """The attention of every layer of a model, as transformers names and numbers it."""
    return [m for m in model.modules() if type(m).__name__.endswith("Attention") and hasattr(m, "layer_idx")]


def read_again(start: Prefill, rest_B: Tensor) -> tuple[Tensor, Tensor]:
    """Reads the end of prompts once more, on top of what the cache has of the tokens before it.

    Args:
        start: the prompts and their cache, which stays as it is.
        rest_B: how many tokens of each prompt are read again, beside the last one.

    Returns:
        The attention's outputs (L, B, R, E) of these tokens, padded on the right, and the log-probabilities (B, V) of the
        token that follows the prompt.
    """
    model, N, device = start.model, start.ids.shape[1], start.ids.device
    # What stands before the rest is moved to its side: sliding windows count the entries between.
    prefix_BN = torch.arange(N - 1, device=device) - rest_B[:, None]
    rest_BR = torch.arange(N - 1, N + int(rest_B.max()), device=device) - rest_B[:, None]
    columns, is_real = torch.cat([prefix_BN, rest_BR], dim=1), (prefix_BN >= 0, rest_BR < N)
    columns = columns.clamp(0, N - 1)
    mask = start.mask.gather(1, columns) * torch.cat(is_real, dim=1)
    positions = position_ids(start.mask) if start.position_ids is None else start.position_ids
    rest = columns[:, N - 1 :]
    cache = DynamicCache()
    for i, (keys, values) in enumerate(
        zip(*read_stack(start.cache, range(len(start.cache.layers)), columns[:, : N - 1]))
    ):
        cache.update(keys, values, i)
    outputs: dict[int, Tensor] = {}

    def keep(module: Any, _: Any, out: Any) -> None:
        outputs[module.layer_idx] = (out[0] if isinstance(out, tuple) else out).float()

    handles = [attention.register_forward_hook(keep) for attention in attentions(model)]
    try:
        with logits_at(model, (torch.arange(len(rest), device=device), rest_B)):
            logits_1BV = model(
                input_ids=start.ids.gather(1, rest),
                attention_mask=mask,
                position_ids=positions.gather(1, rest),
                past_key_values=cache,
                use_cache=True,
            ).logits
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([outputs[i] for i in sorted(outputs)]), logits_1BV[0].float().log_softmax(-1)


def shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


@drawing.styled
def draw(by_layer: dict[str, list[Estimate]]) -> Figure:
    """A line over the receiver's layers for each way of being told."""
    figure = drawing.new_figure(3.2)
    axis = figure.subplots()
    axis.axhline(1, color=drawing.colour("receiver"), linestyle="--", label="the receiver reads it itself")
    styles = ((drawing.ACCENT, "o", "-"), (drawing.CONTRAST, "s", ":"))
    for (label, cosines), style in zip(by_layer.items(), styles):
        drawing.draw_series(axis, range(len(cosines)), cosines, label, *style)
    layer_axis(axis.xaxis)
    axis.set_ylabel("cosine of attention outputs")
    axis.grid()
    figure.legend(loc="outside lower center", ncols=3)
    return figure
