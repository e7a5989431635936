"""What every analysis is: a callback of the test loop that draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import lightning as L

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.methods import Method
from c2c_lightning.evaluation.results import BenchmarkResults
from c2c_lightning.evaluation.section import Section


class Analysis(L.Callback, ABC):
    """Looks into what was communicated.

    An analysis may ask the benchmark's questions in further ways (`methods`), whose answers are kept and
    resumed like all others; if it is also an `Observer`, it sees the caches of the whole benchmark.
    """

    def methods(self, communicator: Communicator) -> Sequence[Method]:
        """The further ways to answer that it compares."""
        return []

    @abstractmethod
    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        """What it has to say about a benchmark, its figures saved in `folder`; None for nothing."""
