"""Batches in an order that depends on seed, epoch and global batch size alone.

Every rank and worker walks the same order and takes its own part of it, so nothing is lost or read
twice whatever their number, ranks get examples of like length, and a resumed run goes on exactly
where it was cut off: the state is a pair of numbers, and what the order depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from c2c_lightning.data.batch_maker import BatchMaker, Partners
from c2c_lightning.data.records import Example
from c2c_lightning.data.stored import StoredExamples
from c2c_lightning.errors import UserError
from c2c_lightning.files import checked
from c2c_lightning.models import Batch
from c2c_lightning.models.rendering import TemplateRunsOn

# How many global batches are made of examples that were shuffled together: enough to make like
# batches (9% of GSM8K's tokens are padding; of 50 batches it would be 13%), few enough that every
# epoch makes others.
BUCKET_BATCHES = 400


def arrange(
    lengths: np.ndarray, batch_size: int, rng: np.random.Generator | None, bucket: bool = True
) -> Iterator[np.ndarray]:
    """Places of examples, as batches.

    Args:
        lengths: (examples, 2), of prompt and response.
        batch_size: examples in a batch; fewer in the last one.
        rng: draws the order; None to keep it as it is.
        bucket: make shuffled batches of like lengths.
    """
    places = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    if rng is None or not bucket:
        yield from (places[i : i + batch_size] for i in range(0, len(places), batch_size))
        return
    for i in range(0, len(places), batch_size * BUCKET_BATCHES):
        batches = _alike(places[i : i + batch_size * BUCKET_BATCHES], lengths, batch_size)
        yield from (batches[k] for k in rng.permutation(len(batches)))


def _alike(places: np.ndarray, lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches of like prompts and like responses.

    Prompts and responses are padded apart, so examples of the same total length are not enough:
    they are halved by whichever of the two lengths spreads further, until a batch is left.
    """
    if len(places) <= batch_size:
        return [places]
    spread = np.ptp(lengths[places], axis=0)
    places = places[np.argsort(lengths[places, spread.argmax()], kind="stable")]
    half = -(-len(places) // batch_size) // 2 * batch_size
    return _alike(places[:half], lengths, batch_size) + _alike(places[half:], lengths, batch_size)


@dataclass(eq=False)
class BatchStream(IterableDataset):
    """This rank's and this worker's batches of one epoch.

    In a DataLoader worker a UserError comes out as the last item instead of being raised.

    Attributes:
        examples: a sequence of examples, or (streaming) a function that yields them in order.
        make_batch: tokenizes; called in the worker.
        batch_size: over all ranks.
        seed: of the order; None to keep the examples' own.
        buffer: how many examples of a stream are shuffled together; rounded up to whole batches.
        bucket: make batches of examples of like length.
        partners: of the examples, if they are a sequence; see `Batch.partners`.
        rank, world_size: which part of each global batch to take.
        epoch: changes the shuffled order.
        start: global batches of this epoch to leave out.
    """

    examples: Sequence[Example] | Callable[[], Iterable[Example]]
    make_batch: BatchMaker
    batch_size: int
    seed: int | None
    buffer: int
    bucket: bool = True
    partners: Partners | None = None
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    start: int = 0

    def __iter__(self) -> Iterator[Batch | UserError]:
        worker = get_worker_info()
        if worker is None:
            yield from self._batches(0, 1)
            return
        try:
            yield from self._batches(worker.id, worker.num_workers)
        except (UserError, TemplateRunsOn) as error:
            # The DataLoader would raise it as a page of traceback, in which the message drowns.
            yield UserError(str(error))

    def _batches(self, turn: int, num_turns: int) -> Iterator[Batch]:
        for index, (examples, places) in enumerate(self._global_batches()):
            if index < self.start or (index - self.start) % num_turns != turn:
                continue
            mine = places[self.rank :: self.world_size].tolist()
            partners = None if self.partners is None else [self.partners.of(i) for i in mine]
            batch = self.make_batch([examples[i] for i in mine], partners)
            batch.epoch, batch.index = self.epoch, index
            yield batch

    def _global_batches(self) -> Iterator[tuple[Sequence[Example], np.ndarray]]:
        rng = None if self.seed is None else np.random.default_rng((self.seed, self.epoch))
        pools: Iterable[Sequence[Example]] = [self.examples]
        if callable(self.examples):
            stream, size = iter(self.examples()), -(-self.buffer // self.batch_size) * self.batch_size
            pools = iter(lambda: list(islice(stream, size)), [])
        for examples in pools:
            for places in arrange(lengths_of(examples), self.batch_size, rng, self.bucket):
                yield examples, places


def lengths_of(examples: Sequence[Example]) -> np.ndarray:
    """(examples, 2) characters of prompt and response."""
    if isinstance(examples, StoredExamples):
        return examples.lengths
    return np.array([example.lengths for example in examples])


class Place(TypedDict):
    epoch: NonNegativeInt
    start: NonNegativeInt
    order: dict[str, Any]


class Loader:
    """Epoch after epoch of a `BatchStream`, resumable in the middle of one.

    Lightning saves and restores it through `state_dict` and `load_state_dict`. What counts as done is
    what was handed to the model (`mark`), not what workers have prepared.
    """

    def __init__(self, stream: BatchStream, num_workers: int):
        self.stream, self.num_workers = stream, num_workers
        self.next_epoch, self.start = self.done = (0, 0)
        num_examples = None if callable(stream.examples) else len(stream.examples)
        self.num_batches = None if num_examples is None else -(-num_examples // stream.batch_size)
        # What the order of the batches depends on, which must not change in mid-run.
        self.order = {
            "data.batch_size x devices": stream.batch_size,
            "data.seed": stream.seed,
            "data.path's number of examples": num_examples,
            "data.bucket": stream.bucket,
            "data.buffer": stream.buffer if num_examples is None else None,
        }

    def __len__(self) -> int:
        if self.num_batches is None:
            raise TypeError("a stream has no length")
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        stream = replace(self.stream, epoch=self.next_epoch, start=self.start)
        self.next_epoch, self.start = self.next_epoch + 1, 0
        empty = True
        # Pinned batches are copied to the GPU while it is at work.
        pin = torch.cuda.is_available()
        for batch in DataLoader(stream, batch_size=None, num_workers=self.num_workers, pin_memory=pin):
            if isinstance(batch, UserError):
                raise batch
            empty = False
            yield batch
        if empty and stream.start:
            # The run was cut off after the last batch of an epoch; a stream has to be read to know that.
            yield from self

    def mark(self, batch: Batch) -> None:
        """Says that the model has been given this batch."""
        self.done = (batch.epoch, batch.index + 1)

    def state_dict(self) -> dict[str, Any]:
        epoch, start = self.done
        return {"epoch": epoch, "start": start, "order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError if the state is damaged, or the order is not what it was, so that its place means nothing."""
        where = "the checkpoint's place in the data (loops.fit_loop.state_dict.combined_loader)"
        checked(state, Place, where, "Take another checkpoint of the run.")
        for name, now in self.order.items():
            then = state["order"].get(name)
            if then != now:
                raise UserError(
                    f"{name} is {now}, but was {then} when the checkpoint was saved, so its place in the data "
                    "is lost. Give the same to resume, or start without --ckpt_path."
                )
        self.next_epoch, self.start = self.done = (state["epoch"], state["start"])
