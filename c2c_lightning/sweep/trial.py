"""What is known of a trial; `ledger.py` reads it from the trial's folder, where it outlives whoever trained it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

State = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass
class Trial:
    """One point of the search space.

    Attributes:
        number: counted from 0 in the order in which trials were begun.
        values: sampled value by dotted configuration key.
        folder: of its run.
        state: `stopped` is early, by the stopping rule.
        reason: why it was stopped or failed, or waits again.
        starts: when it was begun and when resumed, in seconds since 1970.
        ended: when it ended, in seconds since 1970.
        stopped_at: step of the validation by which it was stopped; it may have been trained a little longer.
        run_id: of its MLflow run; None while there is none.
        progress: a row for each validation, see `training.run_record.add_progress`.
    """

    number: int
    values: dict[str, Any]
    folder: Path
    state: State = "waiting"
    reason: str = ""
    starts: list[float] = field(default_factory=list)
    ended: float | None = None
    stopped_at: int | None = None
    run_id: str | None = None
    progress: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.number:03d}"

    @property
    def step(self) -> int:
        """Optimizer steps done at the last validation."""
        return self.progress[-1]["step"] if self.progress else 0

    @property
    def max_steps(self) -> int | None:
        return self.progress[-1]["max_steps"] if self.progress else None

    @property
    def seconds(self) -> float | None:
        """How long it was trained, pauses aside; None if that is not known.

        Counted from every start to the last validation that stems from it.
        """
        seconds = 0.0
        for start, next_start in pairwise([*self.starts, math.inf]):
            times = [row["time"] for row in self.progress if start <= row["time"] < next_start]
            seconds += max(times, default=start) - start
        return seconds or None

    def seconds_left(self, now: float | None = None) -> float | None:
        """How much longer it will train at the pace so far; None if that is not known.

        Args:
            now: in seconds since 1970; None to count from the last validation.
        """
        if not self.step or self.seconds is None:
            return None
        pace = self.seconds / self.step
        left = pace * (self.max_steps - self.step)
        if now is None:
            return left
        # This clock also ran while nothing was trained: believe it no further than to the next validation.
        interval = self.step - (self.progress[-2]["step"] if len(self.progress) > 1 else 0)
        since = max(0.0, now - max(self.starts[-1], self.progress[-1]["time"]))
        return max(0.0, left - min(since, pace * interval))

    def score(self, metric: str) -> float | None:
        """The metric at the last validation; None if it was not reported or is not finite."""
        value = self.progress[-1]["metrics"].get(metric) if self.progress else None
        return value if value is not None and math.isfinite(value) else None

    def has_score(self, metric: str) -> bool:
        """Whether it has ended with a score, on time or early."""
        return self.state in ("finished", "stopped") and self.score(metric) is not None

    @property
    def num_open(self) -> float | None:
        """Open layers at the last validation, over keys and values and all sharers; a head is its share of a layer."""
        if not self.progress:
            return None
        return sum(sum(shares.values()) for gate in self.progress[-1]["gates"] for shares in gate.values())
