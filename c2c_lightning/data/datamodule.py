"""Instruction data for training a fuser: records in, aligned batches out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from typing import Any, get_args

import lightning as L
import numpy as np
import torch
from pydantic import NonNegativeInt
from torch.utils.data import get_worker_info
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from c2c_lightning.data.batch_maker import BatchMaker, Partners
from c2c_lightning.data.loader import BatchStream, Loader, lengths_of
from c2c_lightning.data.records import Context, Example, MalformedTally, Supervise
from c2c_lightning.data.source import Source
from c2c_lightning.data.stored import StoredExamples
from c2c_lightning.errors import UserError, check_at_least
from c2c_lightning.files import checked
from c2c_lightning.models import Aligner, Batch

log = logging.getLogger(__name__)
# If none of so many examples can be used, half of them the shortest, nothing can.
TRIED = 64


class DataState(TypedDict):
    """What a checkpoint has of the data, besides the place in them."""

    left_out: dict[str, NonNegativeInt]


class InstructionData(L.LightningDataModule):
    """Chat messages, ShareGPT, Alpaca or prompt/response pairs from JSON, CSV, Parquet, a folder or the hub.

    Args:
        path: file, folder or hub id, or several of them.
        val_path: the same for validation; None to hold out `val_fraction` of `path`.
        val_fraction: share of the records held out, at least one of them; 0 for no validation.
        split: of a hub dataset, or of a saved one.
        val_split: the same for `val_path`; None for `split`.
        subset: of a hub dataset that has several.
        streaming: read as it comes, for data too large to hold; needs `trainer.max_steps`, and `val_path` for
            validation. Otherwise examples are kept on disk, memory-mapped.
        prompt_column: with `response_column`, the columns of a prompt/response pair; the usual ones are recognised.
        response_column: see `prompt_column`.
        supervise: the `last` assistant turn, or `every` one.
        context: who reads the text that a question or an instruction is about (`context`, `input`): `both` models, the
            `sharer` alone, which hands it over by a mapper, the `receiver` alone, or `nobody`.
        max_length: tokens that prompt and response may have, for any of the models; longer examples are left out,
            counted and reported, never cut.
        batch_size: examples per device and micro-batch.
        val_batch_size: the same for validation; None for `batch_size`.
        buffer: examples of a stream that are shuffled together.
        bucket: make batches of examples of like length, which saves padding; where length tells what an example is
            about, batches are then less mixed.
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
        val_split: str | None = None,
        subset: str | None = None,
        streaming: bool = False,
        prompt_column: str | None = None,
        response_column: str | None = None,
        supervise: Supervise = "last",
        context: Context = "both",
        max_length: int = 2048,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        buffer: int = 10_000,
        bucket: bool = True,
        num_workers: int = 0,
        exact_answers: bool = False,
        seed: int | None = None,
        aligner: Aligner | None = None,
    ):
        super().__init__()
        val_batch_size = batch_size if val_batch_size is None else val_batch_size
        check_at_least(1, "data.{}", batch_size=batch_size, val_batch_size=val_batch_size, buffer=buffer)
        check_at_least(0, "data.{}", num_workers=num_workers)
        check_at_least(2, "data.{}", max_length=max_length)
        if (prompt_column is None) != (response_column is None):
            raise UserError(
                f"data.prompt_column is {prompt_column!r} and data.response_column {response_column!r}: "
                "give both or neither."
            )
        if context not in get_args(Context):
            raise UserError(f"data.context is {context!r}: give one of {', '.join(get_args(Context))}.")
        if context != "both" and prompt_column is not None:
            raise UserError(
                f"data.context is {context!r}, and data.prompt_column {prompt_column!r} says that all is in one column: "
                "give both, or call the columns question, answer and context and name none."
            )
        if not 0 <= val_fraction < 1:
            raise UserError(f"data.val_fraction is {val_fraction}: it must lie in [0, 1).")
        columns = (prompt_column, response_column) if prompt_column and response_column else None
        self.source = Source(path, split, subset, streaming, columns, supervise, context=context)
        self.source.check()
        self.val_source = None
        if val_path:
            of_val = {"path": val_path, "split": val_split or split, "streaming": False, "prefix": "data.val_"}
            self.val_source = replace(self.source, **of_val)
            self.val_source.check()
            both = self.source.shared(self.val_source)
            if both:
                raise UserError(
                    f"data.val_path {val_path!r} and data.path {path!r} both have {both}, so validation would be on "
                    f"what was trained on: give another, or another data.val_split (a part of it, such as "
                    f"{split}[:100], if that is what you want), or neither to hold out data.val_fraction."
                )
        elif streaming:
            log.warning("data.streaming without data.val_path: there is no validation.")
        self.val_fraction, self.streaming, self.max_length = val_fraction, streaming, max_length
        self.batch_size, self.val_batch_size = batch_size, val_batch_size
        self.bucket, self.buffer, self.num_workers = bucket, buffer, num_workers
        self.exact_answers, self.aligner = exact_answers, aligner
        self.seed = (torch.initial_seed() if seed is None else seed) % 2**32
        self.left_out = {"too_long": 0, "refused": 0}
        if aligner is not None and aligner.chat.turns == "merge":
            self.left_out["merged"] = 0  # read all the same, with fewer turns

    def train_examples(self) -> Sequence[Example] | Callable[[], Iterable[Example]]:
        """What to train on: a sequence, or (streaming) a function that yields it."""
        return partial(_stream, self.source) if self.streaming else self._parts[0]

    def val_examples(self) -> Sequence[Example]:
        """What to validate on; may be empty."""
        return self._parts[1]

    @cached_property
    def _parts(self) -> tuple[Sequence[Example], Sequence[Example]]:
        """Examples to train on (none of a stream) and to validate on."""
        validation = [] if self.val_source is None else StoredExamples.of(self.val_source)
        if self.streaming:
            return [], validation
        stored = StoredExamples.of(self.source)
        if self.val_source is not None or self.val_fraction == 0:
            return stored, validation
        kept, held_out = stored.hold_out(self.val_fraction)
        if not len(held_out):
            raise UserError(
                f"data.path {self.source.path!r} has one record, of which data.val_fraction {self.val_fraction} "
                "cannot be held out: give data.val_path, or data.val_fraction 0."
            )
        return kept, held_out

    def setup(self, stage: str) -> None:
        """Reads the data, and sees that something in it can be used, before models are loaded and folders made.

        Raises:
            UserError: the data cannot be read, or each of the shortest examples is too long or refused by a template.
        """
        make_batch = BatchMaker(self.aligner, self.max_length, self.exact_answers)
        for examples in (self.train_examples(), self.val_examples()) if stage == "fit" else (self.val_examples(),):
            if callable(examples):
                make_batch.check(islice(examples(), self.buffer))
            elif len(examples):
                by_length = np.argsort(lengths_of(examples).sum(axis=1), kind="stable")
                # A template may refuse just the short ones, such as calls of a tool.
                spread = np.linspace(0, len(examples) - 1, TRIED // 2).astype(int)
                make_batch.check(examples[i] for i in (*by_length[: TRIED // 2].tolist(), *by_length[spread].tolist()))

    def train_dataloader(self) -> Loader:
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0
        # Shuffled, the first batches would be others in every epoch.
        return self._loader(self.train_examples(), self.batch_size, None if overfit else self.seed)

    def val_dataloader(self) -> Loader | list:
        examples = self.val_examples()
        if not len(examples):
            return []
        partners = Partners(examples) if self.exact_answers else None  # only answers need the control
        return self._loader(examples, self.val_batch_size, None, partners)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if self.trainer is not None and self.trainer.training:
            self.trainer.train_dataloader.mark(batch)
            if batch.epoch == 0:  # later epochs leave out the same
                for reason, count in batch.skipped.items():
                    self.left_out[reason] += count
        return batch

    def state_dict(self) -> dict[str, Any]:
        """What was left out so far, on all ranks together, so that a resumed run counts on from there."""
        counts = torch.tensor(list(self.left_out.values()), device=self.trainer.strategy.root_device)
        counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        return {"left_out": dict(zip(self.left_out, counts.tolist()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        where = f"--ckpt_path {self.trainer.ckpt_path}: {type(self).__qualname__}"
        checked(state, DataState, where, "Take another checkpoint of the run.")
        if self.trainer.is_global_zero:  # the ranks' counts are summed where they are shown
            self.left_out |= state["left_out"]

    def _loader(
        self,
        examples: Sequence[Example] | Callable[[], Iterable[Example]],
        batch_size: int,
        seed: int | None,
        partners: Partners | None = None,
    ) -> Loader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        stream = BatchStream(
            examples,
            BatchMaker(self.aligner, self.max_length, self.exact_answers),
            batch_size * world_size,
            seed,
            self.buffer,
            self.bucket,
            partners,
            rank,
            world_size,
        )
        return Loader(stream, self.num_workers)


def _stream(source: Source) -> Iterator[Example]:
    """A source's examples; of all workers that read it, the first one says what is malformed."""
    worker = get_worker_info()
    level = logging.WARNING if worker is None or worker.id == 0 else logging.DEBUG
    return source.examples(MalformedTally(str(source.path), level))
