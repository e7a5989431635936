"""ASHA over the share of a trial's steps."""

import math
from pathlib import Path

import pytest

from c2c_lightning.sweep.scheduling import Halving
from c2c_lightning.sweep.settings import Asha
from c2c_lightning.sweep.trials import Trial

ASHA = Asha(grace=0.33, factor=2)


def row(step: int, score: float | None, metric: str = "m") -> dict:
    return {"step": step, "max_steps": 300, "metrics": {metric: score}, "gates": [], "time": 1.0}


def ended(number: int, score: float | None) -> Trial:
    return Trial(number, {}, Path(), "finished", progress=[row(100, score), row(200, score)])


def test_the_weak_are_stopped_at_the_rung_and_not_before():
    asha = Halving(ASHA, "m", "max")
    assert not asha.stops("strong", row(100, 0.9))
    assert not asha.stops("early", row(60, 0.1))
    assert asha.stops("weak", row(100, 0.1))
    assert not asha.stops("stronger", row(100, 0.95))


def test_less_is_better_where_the_mode_says_so():
    asha = Halving(ASHA, "m", "min")
    assert not asha.stops("low", row(100, 0.1))
    assert asha.stops("high", row(100, 0.9))


def test_a_sweep_that_is_resumed_compares_with_what_was_before():
    assert not Halving(ASHA, "m", "max").stops("new", row(100, 0.5))
    assert Halving(ASHA, "m", "max", [ended(0, 0.8), ended(1, 0.9)]).stops("new", row(100, 0.5))


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_score_that_is_no_number_is_worse_than_any(mode):
    asha = Halving(ASHA, "m", mode)
    assert not asha.stops("first", row(100, 0.5))
    for n in range(5):  # also where most are such
        assert asha.stops(f"diverged {n}", row(100, None))
    assert asha.stops("infinite", row(100, math.inf))
    assert not asha.stops("some number", row(100, -7.0 if mode == "max" else 7.0))


def test_a_sweep_that_is_resumed_remembers_who_diverged():
    asha = Halving(ASHA, "m", "max", [ended(n, None) for n in range(2)])
    assert asha.stops("new", row(100, None))
    assert not asha.stops("weak but sound", row(100, 0.01))


def test_a_validation_without_the_metric_decides_nothing():
    assert not Halving(ASHA, "m", "max", [ended(0, 0.8)]).stops("new", row(200, 0.1, "other"))
