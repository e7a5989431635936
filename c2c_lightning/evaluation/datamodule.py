"""The benchmarks of an evaluation, dealt out to the ranks."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
import numpy as np

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.questions import Questions, derangement


class BenchmarkData(L.LightningDataModule):
    """Every benchmark's questions, twice: to be measured, and to be answered.

    Args:
        benchmarks: what to ask.
        batch_size: questions that a device reads together.
        seed: decides which other question's cache the control fuses, and how choices are shuffled.

    Raises:
        UserError: no benchmark, or two of the same name.
    """

    def __init__(self, benchmarks: list[Benchmark], batch_size: int = 16, seed: int = 0):
        super().__init__()
        names = [benchmark.name for benchmark in benchmarks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not benchmarks or twice:
            problem = f"has {twice[0]} twice: give one of them another name" if twice else "is empty: name one"
            raise UserError(f"data.benchmarks {problem}.")
        if batch_size < 1:
            raise UserError(f"data.batch_size is {batch_size}: it must be at least 1.")
        if seed < 0:
            raise UserError(f"data.seed is {seed}: it must not be negative.")
        self.benchmarks, self.batch_size, self.seed = benchmarks, batch_size, seed

    def setup(self, stage: str) -> None:
        for benchmark in self.benchmarks:  # what is wrong with the data is said before models are loaded
            benchmark.items()

    def test_dataloader(self) -> list[QuestionLoader]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        loaders = [QuestionLoader(b, self.batch_size, rank, world_size, self.seed) for b in self.benchmarks]
        return [loader for loader in loaders for _ in ("measure", "answer")]


def is_measured(dataloader_idx: int) -> bool:
    """Whether a loader's questions are to be measured, and not to be answered."""
    return dataloader_idx % 2 == 0


class QuestionLoader:
    """A benchmark's questions in batches of like length, the longest first.

    Every rank gets the same number of batches, of which the last may be empty, and every question goes to
    one rank.
    """

    def __init__(self, benchmark: Benchmark, batch_size: int, rank: int, world_size: int, seed: int):
        self.benchmark, self.rank, self.world_size, self.seed = benchmark, rank, world_size, seed
        self.global_batch = batch_size * world_size

    def __len__(self) -> int:
        return -(-len(self.benchmark.items()) // self.global_batch)

    def __iter__(self) -> Iterator[Questions]:
        items = self.benchmark.items()
        partners = derangement(len(items), self.seed)
        lengths = [sum(len(m["content"]) for m in self.benchmark.messages(item)) for item in items]
        places = np.argsort(-np.array(lengths), kind="stable")
        for i in range(0, len(places), self.global_batch):
            mine = places[i : i + self.global_batch][self.rank :: self.world_size]
            yield Questions(self.benchmark, [items[k] for k in mine], [items[partners[k]] for k in mine], self.seed)
