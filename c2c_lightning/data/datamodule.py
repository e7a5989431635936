"""Instruction data for training a fuser: records in, aligned batches out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import lightning as L
import numpy as np
import torch

from c2c_lightning.communication import Aligner, Batch, collate
from c2c_lightning.data.loader import BatchStream, Loader
from c2c_lightning.data.records import Example, MalformedTally, Supervise
from c2c_lightning.data.source import Source
from c2c_lightning.data.stored import StoredExamples

log = logging.getLogger(__name__)


class InstructionData(L.LightningDataModule):
    """Chat messages, ShareGPT, Alpaca or prompt/response pairs from JSONL, Parquet, a folder or the hub.

    Args:
        path: file, folder or hub id, or several of them.
        val_path: the same for validation; None to hold out `val_fraction` of `path`.
        val_fraction: share of the examples held out, at least one of them.
        split: of a hub dataset.
        streaming: read as it comes, for data too large to hold; needs `trainer.max_steps`, and
            `val_path` for validation. Otherwise examples are kept on disk, memory-mapped.
        prompt_column: with `response_column`, the columns of a prompt/response pair; the usual ones
            are recognised.
        response_column: see `prompt_column`.
        supervise: the `last` assistant turn, or `every` one.
        max_length: tokens that prompt and response may have, for any of the models; longer examples
            are left out, counted and reported, never cut.
        batch_size: examples per device and micro-batch.
        val_batch_size: the same for validation; None for `batch_size`.
        buffer: examples of a stream that are shuffled together.
        num_workers: processes that tokenize.
        exact_answers: responses are short enough to compare word for word: validation generates too.
        seed: of the order; None for that of `seed_everything`.
        aligner: reads conversations for the models; comes from the model.
    """

    def __init__(
        self,
        path: str | list[str],
        val_path: str | list[str] | None = None,
        val_fraction: float = 0.01,
        split: str = "train",
        streaming: bool = False,
        prompt_column: str | None = None,
        response_column: str | None = None,
        supervise: Supervise = "last",
        max_length: int = 2048,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        buffer: int = 10_000,
        num_workers: int = 0,
        exact_answers: bool = False,
        seed: int | None = None,
        aligner: Aligner | None = None,
    ):
        super().__init__()
        for key, value in {"batch_size": batch_size, "val_batch_size": val_batch_size, "buffer": buffer}.items():
            if value is not None and value < 1:
                raise ValueError(f"data.{key} is {value}: it must be at least 1.")
        if (prompt_column is None) != (response_column is None):
            raise ValueError("data.prompt_column and data.response_column must be given together.")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"data.val_fraction is {val_fraction}: it must lie in [0, 1).")
        if max_length < 2:
            raise ValueError(f"data.max_length is {max_length}: a prompt and a response need at least 2 tokens.")
        columns = (prompt_column, response_column) if prompt_column and response_column else None
        self.source = Source(path, split, streaming, columns, supervise)
        self.val_source = Source(val_path, split, False, columns, supervise) if val_path else None
        for source in filter(None, (self.source, self.val_source)):
            source.check()
        self.val_fraction, self.streaming, self.max_length = val_fraction, streaming, max_length
        self.batch_size, self.val_batch_size = batch_size, val_batch_size or batch_size
        self.buffer, self.num_workers, self.exact_answers = buffer, num_workers, exact_answers
        self.seed = (torch.initial_seed() if seed is None else seed) % 2**32
        self.aligner = aligner

    def train_examples(self) -> Sequence[Example] | Callable[[], Iterable[Example]]:
        """What to train on: a sequence, or (streaming) a function that yields it."""
        if self.streaming:
            return lambda: self.source.examples(MalformedTally(str(self.source.path)))
        return self._parts[0]

    def val_examples(self) -> Sequence[Example]:
        """What to validate on; may be empty."""
        if self.val_source is not None:
            return StoredExamples.of(self.val_source)
        return [] if self.streaming else self._parts[1]

    @cached_property
    def _parts(self) -> tuple[Sequence[Example], Sequence[Example]]:
        stored = StoredExamples.of(self.source)
        if self.val_source is not None or self.val_fraction == 0:
            return stored, []
        if len(stored) < 2:
            raise ValueError(
                f"data.path {self.source.path!r} has {len(stored)} example: give data.val_path, or data.val_fraction 0."
            )
        # Which examples are held out must not depend on the run's seed, or runs could not be compared.
        order = np.random.default_rng(0).permutation(len(stored))
        held_out = max(1, round(len(stored) * self.val_fraction))
        return stored.select(np.sort(order[held_out:])), stored.select(np.sort(order[:held_out]))

    def train_dataloader(self) -> Loader:
        return self._loader(self.train_examples(), self.batch_size, self.seed)

    def val_dataloader(self) -> Loader | list:
        examples = self.val_examples()
        return self._loader(examples, self.val_batch_size, None) if len(examples) else []

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if self.trainer is not None and self.trainer.training:
            self.trainer.train_dataloader.mark(batch)
        return batch

    def _loader(
        self, examples: Sequence[Example] | Callable[[], Iterable[Example]], batch_size: int, seed: int | None
    ) -> Loader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        global_batch = batch_size * world_size
        make_batch = BatchMaker(self.aligner, self.max_length, self.exact_answers)

        def stream(epoch: int, start: int) -> BatchStream:
            return BatchStream(examples, make_batch, global_batch, rank, world_size, seed, self.buffer, epoch, start)

        num_batches = None if callable(examples) else -(-len(examples) // global_batch)
        return Loader(stream, num_batches, self.num_workers, torch.cuda.is_available())


class BatchMaker:
    """Tokenizes and aligns examples; leaves out those that are too long, and says so in the batch."""

    def __init__(self, aligner: Aligner, max_length: int, exact_answers: bool):
        self.aligner, self.max_length, self.exact_answers = aligner, max_length, exact_answers
        self.seen, self.too_long = 0, 0

    def __call__(self, examples: list[Example]) -> Batch:
        prompts, responses, references = [], [], []
        skipped = 0
        for example in examples:
            prompt = self.aligner.prompt(example.prompt)
            response = self.aligner.response_ids(example.messages, prompt)
            longest = max(len(prompt.receiver_ids) + len(response), *map(len, prompt.sharer_ids))
            if longest > self.max_length:
                skipped += 1
                log.info("left out %s: %d tokens", example.source, longest)
                continue
            prompts.append(prompt)
            responses.append(response)
            references.append(example.response)
        self._check(len(examples), skipped)
        if not prompts:
            # A rank that has nothing to learn from must take part in the step all the same.
            prompts, responses = [self.aligner.prompt([{"role": "user", "content": "-"}])], [[]]
            references = [""]
        batch = collate(prompts, responses, self.aligner.pad_ids)
        batch.references = references if self.exact_answers else None
        batch.skipped = {"too_long": skipped} if skipped else {}
        return batch

    def _check(self, seen: int, too_long: int) -> None:
        self.seen += seen
        self.too_long += too_long
        if self.too_long == self.seen and self.seen >= 32:
            raise ValueError(
                f"data.max_length is {self.max_length}: the first {self.seen} examples are all longer. "
                "Raise it, or shorten the data."
            )
