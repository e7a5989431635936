"""ASHA over the share of a trial's steps."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from c2c_lightning.sweep.halving import halving
from c2c_lightning.sweep.settings import Asha
from c2c_lightning.sweep.trial import Trial

ASHA = Asha(grace=0.33, factor=2)


def ended(number: int, score: float | None) -> Trial:
    progress = [
        {"step": step, "max_steps": 300, "metrics": {"m": score}, "gates": [], "time": 1.0} for step in (100, 200)
    ]
    return Trial(number, {}, Path(), "finished", progress=progress)


def decide(scheduler, name: str, percent: float, score: float) -> str:
    trial = SimpleNamespace(trial_id=name)
    scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"percent": percent, "m": score})


def test_the_weak_are_stopped_at_the_rung_and_not_before():
    scheduler = halving(ASHA, "m", "max", [])
    assert decide(scheduler, "strong", 33.4, 0.9) == TrialScheduler.CONTINUE
    assert decide(scheduler, "early", 20.0, 0.1) == TrialScheduler.CONTINUE
    assert decide(scheduler, "weak", 33.4, 0.1) == TrialScheduler.STOP
    assert decide(scheduler, "stronger", 33.4, 0.95) == TrialScheduler.CONTINUE


def test_less_is_better_where_the_mode_says_so():
    scheduler = halving(ASHA, "m", "min", [])
    assert decide(scheduler, "low", 33.4, 0.1) == TrialScheduler.CONTINUE
    assert decide(scheduler, "high", 33.4, 0.9) == TrialScheduler.STOP


def test_a_sweep_that_is_resumed_compares_with_what_was_before():
    assert decide(halving(ASHA, "m", "max", []), "new", 33.4, 0.5) == TrialScheduler.CONTINUE
    earlier = [ended(0, 0.8), ended(1, 0.9)]
    assert decide(halving(ASHA, "m", "max", earlier), "new", 33.4, 0.5) == TrialScheduler.STOP


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_score_that_is_no_number_is_worse_than_any(mode):
    scheduler = halving(ASHA, "m", mode, [])
    assert decide(scheduler, "first", 33.4, 0.5) == TrialScheduler.CONTINUE
    for n in range(5):  # also where most are such
        assert decide(scheduler, f"diverged {n}", 33.4, math.nan) == TrialScheduler.STOP
    assert decide(scheduler, "infinite", 33.4, math.inf) == TrialScheduler.STOP
    assert decide(scheduler, "some number", 33.4, -7.0 if mode == "max" else 7.0) == TrialScheduler.CONTINUE


def test_a_sweep_that_is_resumed_remembers_who_diverged():
    scheduler = halving(ASHA, "m", "max", [ended(n, None) for n in range(2)])
    assert decide(scheduler, "new", 33.4, math.nan) == TrialScheduler.STOP
    assert decide(scheduler, "weak but sound", 33.4, 0.01) == TrialScheduler.CONTINUE


def test_a_heartbeat_decides_nothing():
    scheduler = halving(ASHA, "m", "max", [ended(0, 0.8)])
    trial = SimpleNamespace(trial_id="new")
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {"step": 200}) == TrialScheduler.CONTINUE
