"""When a prompt store pays: prefill against read-back, by the length of prompts.

    python -m benchmarks.prompt_store --pair qwen3-mid+qwen2-mid --dtype bf16
    python -m benchmarks.prompt_store --pair qwen3-0.6b+qwen2.5-0.5b --lengths 64,256,1024 --rounds 3

The models are random and of true shapes, see pairs.py; prompts have no padding. Compared are, for receiver and sharers
together, a prefill of a batch as it is without a store; the first pass, which reads every prompt alone and writes it;
and every later one, which reads it back, from the page cache or (`cold`) from the disk. A store pays from the pass on
in which all passes together, read back cold, cost less than that many prefills.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jsonargparse import auto_cli
from transformers import PreTrainedModel

from benchmarks.floor import now
from benchmarks.pairs import MID, random_batch, random_communicator
from c2c_lightning.communicator import Communicator
from c2c_lightning.models import Batch, PromptStore
from c2c_lightning.models.loading import kv_shape


def measure(
    pair: str = MID,
    dtype: Literal["fp32", "bf16"] = "fp32",
    device: str = "cpu",
    batch: int = 4,
    lengths: str = "64,256,1024",
    rounds: int = 5,
    folder: str | None = None,
) -> None:
    """Prints a table.

    Args:
        pair: `receiver+sharer`.
        dtype: of the frozen models.
        device: cpu, cuda.
        batch: prompts in a batch.
        lengths: tokens of a prompt, with commas between them.
        rounds: how many batches are measured.
        folder: on the disk that is to be measured; a folder is made in it, and removed. None for the disk of
            temporary files.
    """
    communicator = random_communicator(pair, 16, dtype, device)
    bytes_per_token = sum(token_bytes(model) for model in (communicator.models.receiver, *communicator.models.sharers))
    print(f"{pair}, {dtype} on {device}: batch {batch}, {bytes_per_token:,} bytes per token\n")
    print(
        "| prompt | MB | prefill, ms | first pass, ms | read back, ms | cold, ms | times as fast (cold) | pays from |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for length in map(int, lengths.split(",")):
        batches = [random_batch(communicator, batch, length, 1, seed) for seed in range(rounds + 1)]
        place = Path(tempfile.mkdtemp(dir=folder))
        try:
            print(row(length, bytes_per_token * batch * length, *seconds(communicator, batches, place)), flush=True)
        finally:
            shutil.rmtree(place)


def token_bytes(model: PreTrainedModel) -> int:
    """What a token takes in a store."""
    shape = kv_shape(model.config)
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * model.dtype.itemsize


def seconds(communicator: Communicator, batches: list[Batch], folder: Path) -> tuple[float, float, float, float]:
    """Medians of a prefill, the first pass, and reading back warm and cold; the first batch is to warm up."""
    store = PromptStore(str(folder))
    store.check([communicator.models.receiver, *communicator.models.sharers])

    def passed(kept: PromptStore | None, before: Callable[[], None] = lambda: None) -> float:
        communicator.models.store = kept
        taken = []
        for batch in batches:
            before()
            start = now(batch.prompt_ids)
            reading = communicator.read(batch)
            reading.receiver_cache()
            communicator.fusers.sharer_stacks(reading)
            taken.append(now(batch.prompt_ids) - start)
        return statistics.median(taken[1:])

    return passed(None), passed(store), passed(store), passed(store, lambda: forget(folder))


def forget(folder: Path) -> None:
    """Has the operating system drop entries from memory."""
    for path in folder.rglob("*.val"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def row(length: int, size: int, prefill: float, first: float, warm: float, cold: float) -> str:
    # first + (passes - 1) * cold < passes * prefill
    pays = f"pass {max(1, math.floor((first - cold) / (prefill - cold)) + 1)}" if cold < prefill else "never"
    times = " | ".join(f"{1e3 * taken:.1f}" for taken in (prefill, first, warm, cold))
    return f"| {length} | {size / 1e6:.1f} | {times} | {prefill / warm:.1f} ({prefill / cold:.1f}) | {pays} |"


if __name__ == "__main__":
    auto_cli(measure)
