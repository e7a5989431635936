"""What the data pipeline can deliver by itself: examples tokenized, aligned and collated, and how much is padding.

    python -m benchmarks.data
    python -m benchmarks.data --path my.jsonl --receiver Qwen/Qwen3-0.6B --sharer Qwen/Qwen2.5-0.5B-Instruct

Without arguments it reads the built-in world's questions, for the built-in pair. Seconds are counted from the first batch on, when the workers are there; they are seconds on a clock,
for workers are processes of their own.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
from jsonargparse import auto_cli

from c2c_lightning.data import InstructionData, NanoData
from c2c_lightning.models import Aligner, Batch, load_aligner

RECEIVER, SHARER = "c2c_lightning/nano/receiver", "c2c_lightning/nano/sharer"


@dataclass
class Delivery:
    """One pass over the data.

    Attributes:
        examples_per_second: behind the first batch.
        tokens: the receiver's in an example, padding left out, in the mean.
        padding: share of the columns that are padding, of the receiver's prompts and responses together, and of the
            sharer's prompts.
        left_out: examples that were too long or refused.
    """

    examples_per_second: float
    tokens: float
    padding: dict[str, float]
    left_out: int


def delivered(data: InstructionData, most: int) -> Delivery:
    """What the training loader delivers in so many batches, or in an epoch if it is shorter."""
    real, columns = {"receiver": 0, "sharer": 0}, {"receiver": 0, "sharer": 0}
    examples = first = left_out = 0
    begun = time.perf_counter()
    for number, batch in enumerate(data.train_dataloader()):
        if number == 0:
            begun, first = time.perf_counter(), len(batch)
        for model, masks in masks_of(batch).items():
            real[model] += sum(int(mask.sum()) for mask in masks)
            columns[model] += sum(mask.numel() for mask in masks)
        examples += len(batch)
        left_out += sum(batch.skipped.values())
        if number + 1 == most:
            break
    seconds = time.perf_counter() - begun
    return Delivery(
        (examples - first) / seconds,
        real["receiver"] / examples,
        {model: 1 - real[model] / columns[model] for model in real},
        left_out,
    )


def masks_of(batch: Batch) -> dict[str, list]:
    return {"receiver": [batch.prompt_mask, batch.response_mask], "sharer": [batch.sharers[0].mask]}


def built_in(aligner: Aligner, batch_size: int, workers: int) -> InstructionData:
    data = NanoData(batch_size=batch_size, seed=0, aligner=aligner)
    data.num_workers = workers
    return data


def measure(
    path: str | None = None,
    receiver: str = RECEIVER,
    sharer: str = SHARER,
    batch_size: int = 8,
    max_length: int = 4096,
    workers: list[int] = [0, 1, 2],  # noqa: B006
    batches: int = 150,
    rounds: int = 3,
) -> None:
    """Prints a table.

    Args:
        path: of instruction data to read beside the built-in world; None for none.
        receiver: whose tokenizer reads them.
        sharer: whose tokenizer reads them too.
        batch_size: examples in a batch.
        max_length: tokens of an example.
        workers: numbers of processes that tokenize; 0 for the training process itself.
        batches: of every pass, at most.
        rounds: of which the median counts.
    """
    aligner = load_aligner(receiver, [sharer])
    print("| data | workers | examples/s | tokens of an example | padding, receiver | padding, sharer | left out |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        for count in workers:
            kinds = {
                "built-in world": built_in(aligner, batch_size, count),
                "built-in world, batches of 64": built_in(aligner, 64, count),
            }
            if path is not None:
                kinds[Path(path).name] = InstructionData(
                    path,
                    val_fraction=0,
                    max_length=max_length,
                    batch_size=batch_size,
                    num_workers=count,
                    seed=0,
                    aligner=aligner,
                )
            for name, data in kinds.items():
                passes = [delivered(data, batches) for _ in range(rounds)]
                rate, found = statistics.median(p.examples_per_second for p in passes), passes[0]
                padding = " | ".join(f"{share:.1%}" for share in found.padding.values())
                print(
                    f"| {name} | {count} | {rate:,.0f} | {found.tokens:.0f} | {padding} | {found.left_out} |",
                    flush=True,
                )


if __name__ == "__main__":
    auto_cli(measure)
