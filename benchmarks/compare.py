"""Whether something has become slower: ratios measured now beside those of baseline.json.

    OMP_NUM_THREADS=1 python -m benchmarks.compare             # about two minutes; ends with 1 on a regression
    OMP_NUM_THREADS=1 python -m benchmarks.compare --update    # puts what is measured now in their place

Only ratios of two times are compared, both measured in turns: they tell of the code, where seconds tell of the machine
and of who else uses it. Of each the higher is the better. What falls short is measured once more, and the better of
the two counts. Ratios also differ between processors, so a baseline is good for the one that it names.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.fuser import compared
from benchmarks.generate import measured_generation
from benchmarks.pairs import DTYPES, MID, random_batch, random_communicator
from benchmarks.rounds import ratio, taking_turns
from benchmarks.train_step import TrainStep

BASELINE = Path(__file__).with_name("baseline.json")
TOLERANCE = 0.1
TINY = "qwen3-tiny+qwen2-tiny"


def of_floor(pair: str, hidden: int, dtype: str, batch: int, prompt: int, response: int, rounds: int) -> float:
    """The floor's share of a train step, its matmuls taking turns with the step."""
    step = TrainStep(pair, hidden, dtype, "cpu", batch, prompt, response)
    linear = torch.nn.Linear(1024, 1024, bias=False, dtype=DTYPES[dtype]).requires_grad_(False)
    x = torch.randn(1024, 1024, dtype=DTYPES[dtype])
    floor = sum(step.floor.values())
    repeats = max(1, round(floor / (2 * 1024**3)))
    times = taking_turns({"matmuls": lambda: [linear(x) for _ in range(repeats)], "step": step}, rounds)
    return ratio(times, "matmuls", "step") * floor / (repeats * 2 * 1024**3)


def generation(pair: str, hidden: int, batch: int, rounds: int) -> dict[str, float]:
    """The receiver alone by the fused one: to the first token, and for each further one."""
    communicator = random_communicator(pair, hidden, "fp32", "cpu").eval()
    found = measured_generation(communicator, random_batch(communicator, batch, 128, 1), 1, 24, rounds)
    return {"first": 1 / found.first_ratio, "further": 1 / found.decode_ratio}


MEASURES: dict[str, Callable[[int], float]] = {
    "train step, of floor, fp32": lambda rounds: of_floor(MID, 256, "fp32", 2, 128, 32, rounds),
    "train step, of floor, bf16": lambda rounds: of_floor(MID, 256, "bf16", 2, 128, 32, rounds),
    "train step, of floor, tiny": lambda rounds: of_floor(TINY, 64, "fp32", 4, 128, 32, rounds),
    "fuser, loop by stacked, 28 layers, 64 tokens, fp32": lambda rounds: (
        compared(28, 64, 128, "fp32", rounds=rounds).ratio
    ),
    "fuser, loop by stacked, 28 layers, 64 tokens, bf16": lambda rounds: (
        compared(28, 64, 128, "bf16", rounds=rounds).ratio
    ),
    "fuser, loop by stacked, 8 layers, 1024 tokens, fp32": lambda rounds: (
        compared(8, 1024, 256, "fp32", rounds=rounds).ratio
    ),
    "first token, alone by fused": lambda rounds: generation(MID, 256, 1, rounds)["first"],
    "further token, alone by fused": lambda rounds: generation(MID, 256, 1, rounds)["further"],
}


def processor() -> str:
    """What ratios depend on beside the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    name = f"{model.get('model name', 'unknown').strip()}, model {model.get('model', 'unknown').strip()}"
    return f"{name}, {torch.get_num_threads()} threads"


def compare(update: bool = False, rounds: int = 9, baseline: Path = BASELINE) -> None:
    """Prints a table.

    Args:
        update: put what is measured now in the place of the baseline.
        rounds: of every measure.
        baseline: the file.
    """
    if not update and not baseline.is_file():
        sys.exit(f"there is no {baseline}: measure one with --update.")
    before = {} if update else json.loads(baseline.read_text())
    if not update and before["processor"] != processor():
        print(f"The baseline was measured on {before['processor']}, and this is {processor()}.\n")
    known = before.get("ratios", {})
    print("| ratio | baseline | now | change |\n|---|---|---|---|")
    now: dict[str, float] = {}
    slower = []
    for name, measure in MEASURES.items():
        least = (1 - TOLERANCE) * known.get(name, 0)
        now[name] = measure(rounds)
        if now[name] < least:
            now[name] = max(now[name], measure(rounds))
        if now[name] < least:
            slower.append(f"{name}: {now[name]:.3f}, was {known[name]:.3f}")
        then, change = (f"{known[name]:.3f}", f"{now[name] / known[name] - 1:+.0%}") if name in known else ("", "")
        print(f"| {name} | {then} | {now[name]:.3f} | {change} |", flush=True)
    if update:
        ratios = {name: round(value, 4) for name, value in now.items()}
        baseline.write_text(json.dumps({"processor": processor(), "ratios": ratios}, indent=2) + "\n")
        print(f"\nwritten to {baseline}")
    elif slower:
        sys.exit(f"\nmore than {TOLERANCE:.0%} slower than the baseline:\n  " + "\n  ".join(slower))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="put what is measured now in the baseline's place")
    parser.add_argument("--rounds", type=int, default=9, help="of every measure")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="the file")
    compare(**vars(parser.parse_args()))
