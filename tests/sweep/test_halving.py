"""ASHA over the share of a trial's steps."""

from pathlib import Path
from types import SimpleNamespace

from ray.tune.schedulers import TrialScheduler

from c2c_lightning.sweep.halving import halving
from c2c_lightning.sweep.settings import Asha
from c2c_lightning.sweep.trial import Trial

ASHA = Asha(grace=0.33, factor=2)


def ended(number: int, score: float) -> Trial:
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


def test_a_sweep_that_is_gone_on_with_compares_with_what_was_before():
    assert decide(halving(ASHA, "m", "max", []), "new", 33.4, 0.5) == TrialScheduler.CONTINUE
    earlier = [ended(0, 0.8), ended(1, 0.9)]
    assert decide(halving(ASHA, "m", "max", earlier), "new", 33.4, 0.5) == TrialScheduler.STOP


def test_a_heartbeat_decides_nothing():
    scheduler = halving(ASHA, "m", "max", [ended(0, 0.8)])
    trial = SimpleNamespace(trial_id="new")
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {"step": 200}) == TrialScheduler.CONTINUE
