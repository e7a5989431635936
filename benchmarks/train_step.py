"""Where the milliseconds of a train step go, and how near it is to the floor.

    python -m benchmarks.train_step --pair qwen3-mid+qwen2-mid --dtype bf16
    python -m benchmarks.train_step --pair qwen3-0.6b+qwen2.5-0.5b --device cuda --dtype bf16

The models are random and of true shapes, see pairs.py; floor.py says what the floor is. Its rate is measured before
and after the steps, and the better one counts.
"""

from __future__ import annotations

import json
import resource
import statistics
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli

from benchmarks.floor import floor_flops, matmul_rate, now
from benchmarks.pairs import DTYPES, MID, random_batch, random_communicator
from c2c_lightning.communicator import Communicator
from c2c_lightning.models import Batch
from c2c_lightning.training.acceleration import Compiled, compile_parts


class TrainStep:
    """Train steps of one size, on random models and a batch without padding.

    Args:
        pair: `receiver+sharer`, see pairs.py.
        hidden: width of the fuser.
        dtype: fp32, or bf16 for frozen models in bf16 and bf16-mixed fusers.
        device: cpu, cuda.
        batch: conversations in a step.
        prompt: tokens of a prompt.
        response: tokens of a response, all supervised.
        compile: see `model.compile`.
    """

    def __init__(
        self,
        pair: str,
        hidden: int,
        dtype: str,
        device: str,
        batch: int,
        prompt: int,
        response: int,
        compile: Compiled = "none",
    ):
        self.size, self.dtype, self.device = (batch, prompt, response), dtype, device
        self.communicator = random_communicator(pair, hidden, dtype, device)
        compile_parts(self.communicator, compile)
        self.batch = random_batch(self.communicator, batch, prompt, response)
        self.optimizer = torch.optim.AdamW(self.communicator.fusers.parameters(), lr=1e-4, fused=True)

    def __call__(self) -> dict[str, float]:
        """One step; seconds by stage."""
        return staged_step(self.communicator, self.batch, self.optimizer, self.dtype)

    @property
    def floor(self) -> dict[str, int]:
        """The FLOPs that must be spent, by stage."""
        return floor_flops(self.communicator, *self.size)


@dataclass
class Measured:
    """A train step, measured.

    Attributes:
        seconds: by stage, medians over the steps.
        floor: the same at the device's matmul rate.
        rate: FLOP/s of a linear layer.
        tokens: of the receiver, in a step.
        peak_memory: bytes; on a GPU what torch has allocated, else what the process has had in memory.
    """

    seconds: dict[str, float]
    floor: dict[str, float]
    rate: float
    tokens: int
    peak_memory: int

    @property
    def of_floor(self) -> float:
        """The floor's share of the time that a step takes; 1 is as fast as can be."""
        return sum(self.floor.values()) / sum(self.seconds.values())


def measure(
    pair: str = MID,
    dtype: Literal["fp32", "bf16"] = "fp32",
    device: str = "cpu",
    hidden: int = 512,
    batch: int = 4,
    prompt: int = 256,
    response: int = 64,
    compile: Compiled = "none",
    steps: int = 10,
    profile: bool = False,
    out: str | None = None,
) -> None:
    """Prints a table.

    Args:
        pair: `receiver+sharer`.
        dtype: fp32, or bf16 for frozen models in bf16 and bf16-mixed fusers.
        device: cpu, cuda.
        hidden: width of the fuser.
        batch: conversations in a step.
        prompt: tokens of a prompt.
        response: tokens of a response, all supervised.
        compile: see `model.compile`; what it costs comes before the steps that are measured.
        steps: how many are measured.
        profile: also say what torch's operations took.
        out: a JSON file for the figures.
    """
    step = TrainStep(pair, hidden, dtype, device, batch, prompt, response, compile)
    found = measured(step, steps)
    print(
        f"{pair}, fuser {hidden} wide, {dtype} on {device}: batch {batch}, prompt {prompt}, response {response}", end=""
    )
    print(f", compiled: {compile}\n")
    print("| stage | ms | floor, ms | of floor |\n|---|---|---|---|")
    for stage, seconds in found.seconds.items():
        print(row(stage, seconds, found.floor[stage]))
    total = sum(found.seconds.values())
    print(row("step", total, sum(found.floor.values())))
    print(f"\n{found.tokens / total:,.0f} tokens/s; matmul rate {found.rate / 1e9:,.0f} GFLOP/s; ", end="")
    print(f"peak memory {found.peak_memory / 2**30:.2f} GiB; padding 0%")
    if profile:
        print(profiled(step))
    if out is not None:
        Path(out).write_text(json.dumps({**asdict(found), "of_floor": found.of_floor}, indent=2))


def row(stage: str, seconds: float, floor: float) -> str:
    return f"| {stage} | {1e3 * seconds:.1f} | {1e3 * floor:.1f} | {f'{floor / seconds:.0%}' if floor else ''} |"


def measured(step: TrainStep, steps: int) -> Measured:
    """Medians over some steps, after two to warm up."""
    on_gpu, dtype = step.batch.prompt_ids.is_cuda, DTYPES[step.dtype]
    rates = [matmul_rate(dtype, step.device)]
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    rounds = [step() for _ in range(steps + 2)][2:]
    rates.append(matmul_rate(dtype, step.device))
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    batch, prompt, response = step.size
    return Measured(
        seconds={stage: statistics.median(times[stage] for times in rounds) for stage in rounds[0]},
        floor={stage: count / max(rates) for stage, count in step.floor.items()},
        rate=max(rates),
        tokens=batch * (prompt + response),
        peak_memory=peak,
    )


def staged_step(
    communicator: Communicator, batch: Batch, optimizer: torch.optim.Optimizer, dtype: str
) -> dict[str, float]:
    """One step as training does it; seconds by stage."""
    seconds: dict[str, float] = defaultdict(float)
    clock = now(batch.prompt_ids)

    def lap(stage: str) -> None:
        nonlocal clock
        before, clock = clock, now(batch.prompt_ids)
        seconds[stage] += clock - before

    with torch.autocast(batch.prompt_ids.device.type, torch.bfloat16) if dtype == "bf16" else nullcontext():
        reading = communicator.read(batch)
        stacks = communicator.fusers.sharer_stacks(reading)
        lap("sharer prefill")
        reading.receiver_cache()
        lap("receiver prefill")
        cache = communicator.fusers.fuse(reading, stacks)
        lap("fusion")
        loss, supervised = communicator.models.response_loss(cache, batch)
        loss = loss / supervised
        lap("response")
    loss.backward()
    lap("backward")
    optimizer.step()
    optimizer.zero_grad()
    lap("optimizer")
    return seconds


def profiled(step: TrainStep) -> str:
    """What torch's operations took in a step."""
    with torch.profiler.profile() as profile:
        step()
    sort = "self_cuda_time_total" if step.batch.prompt_ids.is_cuda else "self_cpu_time_total"
    return profile.key_averages(group_by_input_shape=True).table(sort_by=sort, row_limit=30)


if __name__ == "__main__":
    auto_cli(measure)
