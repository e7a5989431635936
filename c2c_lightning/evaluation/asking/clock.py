"""How long the stages of an answer take: CUDA events on a GPU, a monotonic clock elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Mark = float | torch.cuda.Event
Span = tuple[str, Mark, Mark]


class StageClock:
    """Times named stages, which run on a device, without making it wait for the host."""

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.spans: list[Span] = []
        self.marks: dict[str, Mark] = {}
        self.begun = self.now()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begun = self.now()
        yield
        self.spans.append((stage, begun, self.now()))

    def mark(self, name: str) -> None:
        """Notes the moment at which something happens first."""
        if name not in self.marks:
            self.marks[name] = self.now()

    def now(self) -> Mark:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Mark, second: Mark) -> float:
        """Seconds from one moment to another; waits for the device."""
        if not self.on_gpu:
            return second - first
        second.synchronize()
        return first.elapsed_time(second) / 1000

    def seconds(self) -> dict[str, float]:
        """Seconds of every stage, summed over the times it was entered."""
        total: dict[str, float] = defaultdict(float)
        for stage, first, second in self.spans:
            total[stage] += self.between(first, second)
        return dict(total)
