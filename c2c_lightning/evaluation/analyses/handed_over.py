"""What part of a text's slots is enough: retention against the bytes that are handed over."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

from c2c_lightning import drawing
from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing import Estimate
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses.base import TextAnalysis, score_cells
from c2c_lightning.evaluation.asking.methods import C2C, Asking, Method, ReadsIt, Receiver
from c2c_lightning.evaluation.report.findings import BenchmarkResults
from c2c_lightning.evaluation.report.page import NOTHING, Section, size
from c2c_lightning.evaluation.report.statistics import retention
from c2c_lightning.mapper import Handed
from c2c_lightning.mapper.handed import BITS, pack
from c2c_lightning.models import Reading
from c2c_lightning.models.private_text import PRIVATE

TEXT = """\
What C2C is handed of a text, packed as `read` packs it into a file: each number in fewer bits (`bits_8`: 8, with a range \
for every feature of the keys and every token of the values), or in 16 bits of some tokens only (`kept_25`: the 25% whose \
keys and values are farthest from their means). What is kept stands where it would stand. Retention is what is left of the \
gain by reading the text, with a 95% bootstrap interval; bytes are of the text of a question on average."""
KEPT_BITS = 16  # of a number where only some tokens are kept


class RetentionByBytes(TextAnalysis):
    """Retention with the slots in fewer bits, and with those of a part of a text's tokens.

    Costs a further evaluation for each; it is about questions with texts that the sharer alone reads.

    Args:
        bits: of a number: some of 32, 16, 8, 4.
        percentages: of a text's tokens, each more than 0 and less than 100.

    Raises:
        UserError: one of them out of range.
    """

    def __init__(self, bits: tuple[int, ...] = (16, 8, 4), percentages: tuple[int, ...] = (50, 25, 10)):
        if not set(bits) <= set(BITS):
            raise UserError(f"bits of RetentionByBytes are {list(bits)}: give some of {', '.join(map(str, BITS))}.")
        if any(not 0 < p < 100 for p in percentages):
            raise UserError(f"percentages of RetentionByBytes are {list(percentages)}: give some between 1 and 99.")
        self.bits, self.percentages = sorted(set(bits)), sorted(set(percentages))

    def methods(self, communicator: Communicator) -> list[Method]:
        return [Receiver(), ReadsIt(), C2C(), *self.packed()]

    def packed(self) -> list[Packed]:
        return [*(Packed(bits) for bits in self.bits), *(Packed(KEPT_BITS, p) for p in self.percentages)]

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        if not {"receiver", "reads_it", "c2c"} <= results.answers.keys():
            return None
        untold, reads = results.scores("receiver"), results.scores("reads_it")
        rows, found = [], {}
        for method in (C2C(), *self.packed()):
            told = results.scores(method.name)
            number = float(np.mean([answer.handed_over for answer in results.answers[method.name]]))
            kept = retention(told, untold, reads, results.seed)
            if kept:
                found[method.name] = number, kept
            cells = {"handed over": size(number), "retention": in_percent(kept) if kept else NOTHING}
            rows.append({"": drawing.shown(method.name)} | cells | score_cells(results, method.name, "c2c"))
        tables, caption = {"By what is handed over": pd.DataFrame(rows)}, "Retention against bytes handed over"
        figures = {caption: drawing.save(self.draw(found), folder, "retention_by_bytes")} if found else {}
        return Section("How much has to be handed over", TEXT, tables, figures)

    @drawing.styled
    def draw(self, found: dict[str, tuple[float, Estimate]]) -> Figure:
        """A line for fewer bits and one for fewer tokens, from methods' bytes and retention."""
        figure = drawing.new_figure(3.8)
        axis = figure.subplots()
        axis.axhline(1, color=drawing.colour("receiver"), linestyle="--", label="the receiver reads it itself")
        axis.axhline(0, color=drawing.colour("receiver"), linestyle=":", label="the receiver alone")
        fewer_bits = ["c2c", *(f"bits_{bits}" for bits in self.bits[::-1])]
        fewer_tokens = [f"kept_{percentage}" for percentage in self.percentages]
        fewer_tokens += [f"bits_{KEPT_BITS}"] if KEPT_BITS in self.bits else []
        for label, names, *style in (
            ("all tokens", fewer_bits, drawing.ACCENT, "o", "-"),
            (f"some tokens, {KEPT_BITS} bits", fewer_tokens, drawing.CONTRAST, "s", "--"),
        ):
            if names:
                numbers, kept = zip(*(found[name] for name in names))
                drawing.draw_series(axis, numbers, kept, label, *style)
        for name, (number, kept) in found.items():
            kind, _, amount = name.partition("_")
            label = {"c2c": "C2C", "bits": f"{amount} bits", "kept": f"{amount}%"}[kind]
            end, side = (kept.low, -1) if kind == "kept" else (kept.high, 1)
            beside = {"textcoords": "offset points", "ha": "center", "va": "top" if side < 0 else "bottom"}
            axis.annotate(label, (number, end), (0, 6 * side), **beside)
        axis.margins(y=0.12)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(lambda number, _: size(number))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("bytes handed over of a text (log)")
        drawing.score_axis(axis.yaxis, "accuracy")
        axis.set_ylabel("retention")
        axis.grid()
        axis.legend(loc="best")
        return figure


class Packed(C2C):
    """C2C with a text's slots packed as `read` packs them.

    Args:
        bits: of a number.
        percentage: of the tokens, the most distinct ones.
    """

    needs_texts = True

    def __init__(self, bits: int, percentage: int = 100):
        self.bits, self.percentage = bits, percentage
        self.name = f"bits_{bits}" if percentage == 100 else f"kept_{percentage}"
        of_tokens = "" if percentage == 100 else f" and {percentage}% of its tokens"
        self.description = f"C2C with {bits} bits for each number of a text{of_tokens}"

    def heard(self, asking: Asking) -> Reading:
        models, text = asking.models, asking.reading.batch.private
        if text is None:
            return asking.reading
        rows = asking.reading.mapped.to(models.receiver.dtype).cpu().split(text.numbers.tolist(), dim=2)
        told = [
            [{**turn, PRIVATE: self.handed(entries)} if turn.get(PRIVATE) else turn for turn in turns]
            for turns, entries in zip(asking.questions.messages(), rows)
        ]
        return models.read(models.collate(told)).with_mapper(asking.reading.mapper)

    def handed(self, entries: Tensor) -> Handed | None:
        number = entries.shape[2]
        if not number:
            return None
        return Handed.of(pack(entries, self.bits, math.ceil(number * self.percentage / 100)), self.bits, number)


def in_percent(kept: Estimate) -> str:
    value, low, high = (f"{100 * share:.0f}" for share in (kept.value, kept.low, kept.high))
    return f"{value}% [{low}, {high}]"
