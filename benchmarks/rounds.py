"""Times that can be compared on a machine that others use too.

What is compared takes turns, and ratios are medians over the rounds. Where torch has a single thread (OMP_NUM_THREADS=1)
processor time is measured, which others disturb least.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Times = dict[str, list[float]]


def taking_turns(functions: dict[str, Callable[[], object]], rounds: int, seconds: float = 0.0) -> Times:
    """Seconds of every function in every round, after one to warm up.

    Args:
        functions: by name; every other round they are called in the opposite order.
        rounds: at least so many.
        seconds: go on for as long.
    """
    for function in functions.values():
        function()
    times: Times = {name: [] for name in functions}
    begun, done = clock(), 0
    while done < rounds or (clock() - begun < seconds and done < 20 * rounds):
        order = list(functions) if done % 2 else list(functions)[::-1]
        for name in order:
            start = clock()
            functions[name]()
            times[name].append(clock() - start)
        done += 1
    return times


def ratio(times: Times, of: str, to: str) -> float:
    """The median over rounds of one function's time by another's in the same round."""
    return statistics.median(a / b for a, b in zip(times[of], times[to]))


def clock() -> float:
    """Seconds, when every GPU has done all that it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()
