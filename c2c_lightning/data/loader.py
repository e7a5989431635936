"""Batches in an order that depends on seed, epoch and global batch size alone.

Every rank and worker walks the same order and takes its own part of it, so nothing is lost or read
twice whatever their number, ranks get examples of like length, and a resumed run goes on exactly
where it was cut off: the state is one pair of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from c2c_lightning.communication import Batch
from c2c_lightning.data.records import Example
from c2c_lightning.data.stored import StoredExamples

# How many global batches are sorted by length together: enough to make like batches (padding of a
# few per cent on GSM8K), few enough to keep the order random.
BUCKET_BATCHES = 50
MakeBatch = Callable[[list[Example]], Batch]


def arrange(lengths: Sequence[int], batch_size: int, rng: np.random.Generator | None) -> list[np.ndarray]:
    """Places of examples, as batches: in order without `rng`, otherwise shuffled and length-bucketed."""
    places = np.arange(len(lengths))
    if rng is None:
        return [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
    places = rng.permutation(places)
    lengths, batches = np.asarray(lengths), []
    for i in range(0, len(places), batch_size * BUCKET_BATCHES):
        window = places[i : i + batch_size * BUCKET_BATCHES]
        window = window[np.argsort(lengths[window], kind="stable")]
        cut = [window[j : j + batch_size] for j in range(0, len(window), batch_size)]
        batches += [cut[k] for k in rng.permutation(len(cut))]
    return batches


class BatchStream(IterableDataset):
    """This rank's and this worker's batches of one epoch.

    Args:
        examples: a sequence of examples, or (streaming) a function that yields them in order.
        make_batch: tokenizes; called in the worker.
        batch_size: over all ranks.
        rank, world_size: which part of each global batch to take.
        seed: of the order; None to keep the examples' own.
        buffer: how many examples of a stream are shuffled together.
        epoch: changes the shuffled order.
        start: global batches of this epoch to leave out.
    """

    def __init__(
        self,
        examples: Sequence[Example] | Callable[[], Iterable[Example]],
        make_batch: MakeBatch,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int | None,
        buffer: int,
        epoch: int,
        start: int,
    ):
        self.examples, self.make_batch, self.batch_size = examples, make_batch, batch_size
        self.rank, self.world_size, self.seed, self.buffer = rank, world_size, seed, buffer
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        turn, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for index, (examples, places) in enumerate(self._global_batches()):
            if index < self.start or (index - self.start) % num_workers != turn:
                continue
            batch = self.make_batch([examples[int(i)] for i in places[self.rank :: self.world_size]])
            batch.epoch, batch.index = self.epoch, index
            yield batch

    def _global_batches(self) -> Iterator[tuple[Sequence[Example], np.ndarray]]:
        rng = None if self.seed is None else np.random.default_rng((self.seed, self.epoch))
        for examples, lengths in self._pools():
            for places in arrange(lengths, self.batch_size, rng):
                yield examples, places

    def _pools(self) -> Iterator[tuple[Sequence[Example], Sequence[int]]]:
        if not callable(self.examples):
            stored = isinstance(self.examples, StoredExamples)
            yield self.examples, self.examples.lengths if stored else _lengths(self.examples)
            return
        pool: list[Example] = []
        for example in self.examples():
            pool.append(example)
            if len(pool) == self.buffer:
                yield pool, _lengths(pool)
                pool = []
        if pool:
            yield pool, _lengths(pool)


def _lengths(examples: Sequence[Example]) -> list[int]:
    return [example.num_characters for example in examples]


class Loader:
    """Epoch after epoch of a `BatchStream`, resumable in the middle of one.

    Lightning saves and restores it through `state_dict` and `load_state_dict`. What counts as done is
    what was handed to the model (`mark`), not what workers have prepared.
    """

    def __init__(
        self, stream: Callable[[int, int], BatchStream], num_batches: int | None, num_workers: int, pin_memory: bool
    ):
        self.stream, self.num_batches = stream, num_batches
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.next_epoch, self.start = 0, 0
        self.done: tuple[int, int] | None = None

    def __len__(self) -> int:
        if self.num_batches is None:
            raise TypeError("a stream has no length")
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self.next_epoch, self.start
        self.next_epoch, self.start = epoch + 1, 0
        yield from DataLoader(
            self.stream(epoch, start), batch_size=None, num_workers=self.num_workers, pin_memory=self.pin_memory
        )

    def mark(self, batch: Batch) -> None:
        """Says that the model has been given this batch."""
        self.done = (batch.epoch, batch.index + 1)

    def state_dict(self) -> dict[str, Any]:
        epoch, start = self.done or (self.next_epoch, self.start)
        return {"epoch": epoch, "start": start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        epoch, start = state["epoch"], state["start"]
        finished = self.num_batches is not None and start >= self.num_batches
        self.next_epoch, self.start = (epoch + 1, 0) if finished else (epoch, start)
        self.done = (self.next_epoch, self.start)
