"""What a sweep file says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from c2c_lightning.errors import UserError

SWEEP_FILE = "sweep.yaml"
Search = Literal["tpe", "random", "grid"]
Mode = Literal["max", "min"]


@dataclass
class Asha:
    """Early stopping by asynchronous successive halving (ASHA, arXiv 1810.05934).

    At each rung a trial goes on only if it is among the best 1 / factor of those that came that far.

    Attributes:
        grace: the first rung, as a share of a trial's optimizer steps.
        factor: the next rung is at so many times the share.
    """

    grace: float = 0.25
    factor: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.grace < 1:
            raise UserError(f"asha.grace is {self.grace}: give the share of a trial's steps, between 0 and 1.")
        if not 1 < self.factor < math.inf:
            raise UserError(f"asha.factor is {self.factor}: it must be above 1.")


@dataclass
class Resources:
    """What one training process gets, all of it on one machine.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs; they are all that the process sees, so `trainer.devices: auto` takes them all.
        autoscaling: the cluster adds machines on demand, so a demand that none of them meets now is waited for.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    autoscaling: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.cpus < math.inf or not 0 <= self.gpus < math.inf:
            raise UserError(f"resources has cpus {self.cpus} and gpus {self.gpus}: give some CPU, and no less than 0.")


@dataclass
class Sweep:
    """A search over layer-gating configurations, or over any other keys of a `fit`.

    Attributes:
        space: by dotted configuration key what to try: {choice: [...]}, {grid: [...]}, {uniform: [low, high]},
            {loguniform: [low, high]}, {int: [low, high]} (with step or log), or {layers: [...]}, every subset of
            them but the empty one (with least and most).
        base: configuration files of an ordinary fit, later ones over earlier ones.
        fixed: by dotted key what all trials have over the base.
        metric: what to judge by, as a run reports it at validation.
        mode: whether more of it is better.
        search: `tpe`, `random`, or `grid` for every combination; None for `grid` if all keys are grids, else `tpe`.
        trials: how many; None for all of a grid.
        first: points to try first, by dotted key, each value one that the space has; other keys are sampled.
        asha: when to stop weak trials; None never to.
        engine: `processes`, each trial an ordinary fit of its own; or `shared`, where trials that differ only in
            fuser and gates learn from the same caches in one process.
        together: how many trials share one process and its prefill under the shared engine.
        resources: of a training process.
        concurrent: training processes at once; None for as many as the machines have resources for.
        retries: how often a trial that crashed is resumed from its last checkpoint.
        seed: of the search.
        experiment: MLflow experiment.
        date: that chat templates take for today's in every trial, YYYY-MM-DD; None for the `model.chat.date` of the
            base, or else the day on which the sweep begins.
    """

    # Plain dicts, whose values the parser leaves alone: one that names a class stays a configuration.
    space: dict[str, dict]
    base: list[str] | str = field(default_factory=lambda: ["conf/base.yaml"])
    fixed: dict = field(default_factory=dict)
    metric: str = "val/accuracy/c2c"
    mode: Mode = "max"
    search: Search | None = None
    trials: int | None = None
    first: list[dict] = field(default_factory=list)
    asha: Asha | None = None
    engine: Literal["processes", "shared"] = "processes"
    together: int = 4
    resources: Resources = field(default_factory=Resources)
    concurrent: int | None = None
    retries: int = 2
    seed: int = 0
    experiment: str = "c2c"
    date: str | None = None

    def __post_init__(self) -> None:
        self.base = [self.base] if isinstance(self.base, str) else list(self.base)
        for key, least in {"trials": 1, "concurrent": 1, "together": 1, "retries": 0}.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise UserError(f"{key} is {value}: it must be at least {least}.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}: it must be from 0 to {2**32 - 1}.")
        points = {f"first[{place}]": point for place, point in enumerate(self.first)}
        for name, values in {"space": self.space, "fixed": self.fixed, **points}.items():
            for key in values:
                if not isinstance(key, str) or not all(key.split(".")):
                    raise UserError(
                        f"{name} has the key {key!r}: give a dotted key of a configuration, such as model.layers."
                    )
        if not self.space:
            raise UserError(
                "space is empty, so there is nothing to try: name a key and its values, such as "
                "model.layers: {choice: [all, last:2]}."
            )
        for key in self.space.keys() & self.fixed.keys():
            raise UserError(f"{key} is both in space and in fixed: leave it out of one of them.")
