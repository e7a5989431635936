"""Training is what it was: golden.py says how to record it anew, after a change that was meant to change it."""

from __future__ import annotations

import json

import pytest

from tests.training.golden import FILE, STEPS, losses

WITHIN = 1e-4


@pytest.fixture(scope="module")
def recorded() -> list[float]:
    return json.loads(FILE.read_text())


def test_the_losses_of_a_short_run_are_the_recorded_ones(recorded):
    run = losses()
    assert len(run) == STEPS
    assert run == pytest.approx(recorded, abs=WITHIN, rel=0)


@pytest.mark.slow
def test_a_learning_rate_that_is_a_thousandth_higher_is_noticed(recorded):
    # Without this, the tolerance might hide what the first test is there to see.
    assert losses("--model.optimizer.lr=3.003e-3") != pytest.approx(recorded, abs=WITHIN, rel=0)
