"""How long answers take, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pandas.api.typing import DataFrameGroupBy

from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing import ACCENT, INK, PALE, colour, new_figure, save, shown, styled
from c2c_lightning.errors import UserError, check_at_least
from c2c_lightning.evaluation.analyses.base import Analysis
from c2c_lightning.evaluation.asking.methods import Answering, Asking
from c2c_lightning.evaluation.asking.questions import Questions, StageClock
from c2c_lightning.evaluation.report.findings import BenchmarkResults
from c2c_lightning.evaluation.report.page import NOTHING, Section

METHODS = ("receiver", "sharer", "text_to_text", "c2c", "c2c_after_text")
STAGES = {  # and their colours
    "sharer prefill": "#f0c987",
    "sharer decode": colour("sharer"),
    "text": colour("text_to_text"),
    "receiver prefill": PALE,
    "fusion": ACCENT,
    "decode": INK,
}
TEXT = """\
Time from the tokenized question to the finished response, on {device}, for the first {questions} questions, \
{repeats} times each after a round to warm up. Methods take turns at every batch, so that what disturbs the \
machine disturbs all alike. Times are those of a whole batch: medians with quartiles in the first table, means \
in the second and in the figure, since means of stages add up. Tokenizing the question is left out, as it is \
the same for all; what a method tokenizes beyond it is its stage `text`. Responses differ in length, so the \
time per token is the fairer comparison of decoding.

Source: table 3 of the paper (arXiv 2510.03215): receiver 308 ms, sharer 346, text-to-text 1596, C2C 445 = \
prefill 20 + 90, fusion 27, decode 308."""


COLUMNS = ("batch size", "method", "first token", "per further token", "total", "tokens", *STAGES)


class Latency(Analysis):
    """Time to first token, time per token and total of the methods, with the stages that they are made of.

    Args:
        methods: names of the methods to time; None for receiver, sharer, text_to_text, c2c and
            c2c_after_text, as far as they are asked.
        questions: how many of each benchmark are timed, its first ones.
        batch_size: that is timed beside a batch size of 1.
        repeats: rounds over the questions.

    Raises:
        UserError: a number less than 1.
    """

    def __init__(self, methods: list[str] | None = None, questions: int = 16, batch_size: int = 8, repeats: int = 3):
        check_at_least(1, "{} of Latency", questions=questions, batch_size=batch_size, repeats=repeats)
        self.names, self.questions, self.batch_size, self.repeats = methods, questions, batch_size, repeats

    def check(self, communicator: Communicator, asked: Sequence[str]) -> None:
        strangers = sorted(set(self.names or ()) - set(asked))
        if strangers:
            raise UserError(f"methods of Latency has {strangers[0]!r}: the evaluation has {', '.join(asked)}.")

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        chosen = [results.methods[name] for name in self.names or METHODS if name in results.answers]
        methods = [method for method in chosen if isinstance(method, Answering)]
        if not methods:
            return None
        sizes = sorted({1, min(self.batch_size, len(results.items))})
        rows = [row for size in sizes for row in self.measure(communicator, results, methods, size)]
        timings = pd.DataFrame(rows, columns=COLUMNS).groupby(["batch size", "method"], sort=False)
        device = communicator.models.receiver.device
        text = TEXT.format(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU",
            questions=min(self.questions, len(results.items)),
            repeats=self.repeats,
        )
        figures = {"Where the time goes": save(draw(timings), folder, "latency")}
        return Section("Latency", text, tables(timings), figures)

    def measure(
        self, communicator: Communicator, results: BenchmarkResults, methods: Sequence[Answering], batch_size: int
    ) -> list[dict[str, Any]]:
        """A row of `COLUMNS` for every batch, repeat and method."""
        items = results.items[: self.questions]
        batches = [
            Questions(results.benchmark, items[i : i + batch_size], items[i : i + batch_size], results.seed)
            for i in range(0, len(items), batch_size)
        ]
        for questions in (batches[0], batches[-1]):
            for method in methods:
                time_one(method, communicator, questions)
        rows = []
        for repeat in range(self.repeats):
            for k, questions in enumerate(batches):
                first = (repeat + k) % len(methods)  # nobody is always the first
                for method in (*methods[first:], *methods[:first]):
                    timed = time_one(method, communicator, questions)
                    rows.append({"batch size": batch_size, "method": shown(method.name)} | timed)
        return rows


def time_one(method: Answering, communicator: Communicator, questions: Questions) -> dict[str, float]:
    """Seconds that a method takes to answer some questions, of which the models have read nothing yet.

    The total is timed independently of the stages. `tokens` are of the longest response; `per further token` is NaN
    where it has one only.
    """
    questions.forget()
    asking, device = Asking.of(communicator, questions), communicator.models.receiver.device
    wait(device)
    begun, clock = time.perf_counter(), StageClock(device)
    _, responses = method.respond(replace(asking, clock=clock))
    wait(device)
    total = time.perf_counter() - begun
    stages = clock.seconds()
    tokenization = stages.pop("tokenization", 0.0)
    first_token, tokens = clock.between(clock.begun, clock.marks["first token"]), max(said.tokens for said in responses)
    return {
        "first token": first_token - tokenization,
        "per further token": (total - first_token) / (tokens - 1) if tokens > 1 else np.nan,
        "total": total - tokenization,
        "tokens": tokens,
        **stages,
    }


def wait(device: torch.device) -> None:
    """Until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tables(timings: DataFrameGroupBy) -> dict[str, pd.DataFrame]:
    """A row for each batch size and method: times, and the mean of each stage and of the total, timed by itself."""
    times = timings[["first token", "per further token", "total"]].agg(quartiles)
    times["tokens"] = timings["tokens"].median().map("{:.0f}".format)
    means = timings[[*STAGES, "total"]].mean()
    means.insert(len(STAGES), "sum", means[[*STAGES]].sum(axis=1))
    stages = (1000 * means).map("{:.1f}".format).where(means.notna(), "")
    of_all = {"Latency in ms": times, "Stages in ms": stages}
    return {caption: table.reset_index().astype(str) for caption, table in of_all.items()}


def quartiles(seconds: pd.Series) -> str:
    """Median and quartiles in ms."""
    if seconds.isna().all():
        return NOTHING
    low, middle, high = 1000 * seconds.quantile([0.25, 0.5, 0.75])
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"


@styled
def draw(timings: DataFrameGroupBy) -> Figure:
    """A panel for each batch size, a bar for each method, divided into its stages."""
    means = (1000 * timings[[*STAGES]].mean()).fillna(0.0)
    sizes = means.index.unique("batch size")
    figure = new_figure(1.2 + 0.7 * len(sizes) + 0.42 * len(means))
    axes = figure.subplots(len(sizes), squeeze=False)[:, 0]
    for axis, size in zip(axes, sizes):
        of_size = means.loc[size]
        style = {"color": STAGES, "edgecolor": "white", "linewidth": 0.5, "legend": False}
        of_size.plot.barh(ax=axis, stacked=True, width=0.8, ylabel="", title=f"batch size {size}", **style)
        for place, end in enumerate(of_size.sum(axis=1)):
            axis.text(end, place, f" {end:.0f}" if end >= 10 else f" {end:.1f}", va="center")
        axis.invert_yaxis()
        axis.margins(x=0.1)
        axis.grid(axis="x")
    axes[-1].set_xlabel("mean time of a batch (ms)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
