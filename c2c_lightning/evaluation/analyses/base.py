"""What every analysis is, a callback of the test loop that draws, and the numbers of its tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import lightning as L

from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing import Estimate, shown
from c2c_lightning.evaluation.asking.methods import Method
from c2c_lightning.evaluation.report.findings import BenchmarkResults
from c2c_lightning.evaluation.report.formatting import NOT_SIGNIFICANT, NOTHING, p_value, points_with_interval
from c2c_lightning.evaluation.report.page import Section
from c2c_lightning.evaluation.report.statistics import accuracy, compare


class Analysis(L.Callback, ABC):
    """Looks into what was communicated.

    An analysis may ask the benchmark's questions in further ways (`methods`), whose answers are kept and
    resumed like all others; if it is also an `Observer`, it sees the caches of the whole benchmark.
    """

    def methods(self, communicator: Communicator) -> Sequence[Method]:
        """The further ways to answer that it compares."""
        return []

    def check(self, communicator: Communicator, asked: Sequence[str]) -> None:
        """Raises UserError if it cannot be made of these models and methods; called before anything is written."""

    @abstractmethod
    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        """What it has to say about a benchmark, its figures saved in `folder`; None for nothing."""


def estimates(results: BenchmarkResults, methods: Sequence[str]) -> dict[str, Estimate]:
    """Mean scores with their intervals, of those methods that were asked."""
    return {m: accuracy(results.scores(m), results.seed) for m in methods if m in results.answers}


def differences(results: BenchmarkResults, method: str, reference: str, label: str = "") -> dict[str, str]:
    """Two cells of a table, how much better a method is than a reference and p; none if that was not asked."""
    if reference not in results.answers:
        return {}
    points, p = NOTHING, NOTHING
    if method != reference:
        compared = compare(results.scores(method), results.scores(reference), results.seed)
        points = points_with_interval(compared.difference)
        p = p_value(compared.p) + ("" if compared.significant else f", {NOT_SIGNIFICANT}")
    return {f"{label}less {shown(reference)}, points": points, f"{label}p": p}
