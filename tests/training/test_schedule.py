"""Learning rates and temperatures of a run whose number of steps is changed when it is resumed."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from c2c_lightning.training.optimizer import Schedule, share_of_rate
from tests.training.runs import newest

CUT = [
    "--trainer.callbacks+=tests.training.runs.RaiseSignal",
    "--trainer.callbacks.step=5",
    "--trainer.callbacks.number=15",
]
NOTE = ["--trainer.callbacks+=tests.training.runs.NoteSchedule"]


def rates(schedule: Schedule, warmup: float, steps: range) -> list[float]:
    return [share_of_rate(warmup, schedule.total_at, step) for step in steps]


def test_a_run_that_was_not_changed_has_the_schedule_of_its_length():
    assert rates(Schedule([(0, 10)]), 0.2, range(11)) == [0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]


@pytest.mark.parametrize("lengths", [[(0, 10), (5, 40)], [(0, 10), (5, 7)], [(0, 10), (4, 20), (8, 60), (30, 40)]])
def test_what_is_left_of_a_schedule_is_spread_over_the_steps_that_are_left(lengths):
    before, after = Schedule(lengths[:1]), Schedule(lengths)
    resumed, end = lengths[1][0], lengths[-1][1]
    assert rates(after, 0.1, range(resumed)) == rates(before, 0.1, range(resumed))
    going_on = rates(after, 0.1, range(resumed, end + 1))
    assert going_on[0] == pytest.approx(rates(before, 0.1, range(resumed, resumed + 1))[0])
    assert all(later < earlier for earlier, later in pairwise(going_on))
    assert going_on[-1] == 0


def test_a_warm_up_that_was_cut_off_goes_on_rising():
    going_on = rates(Schedule([(0, 100), (5, 200)]), 0.1, range(5, 21))
    assert going_on[0] == pytest.approx(0.5)
    assert all(later > earlier for earlier, later in pairwise(going_on[:10]))


def test_a_resumed_run_of_more_steps_jumps_back_in_nothing(fit, tmp_path):
    with pytest.raises(SystemExit):
        fit("--trainer.max_steps=8", *CUT, *NOTE, workspace=tmp_path)
    with pytest.warns(UserWarning, match="had 8 steps and now has 12: what is left .* over the 7 steps that are left"):
        run = fit("--trainer.max_steps=12", "--ckpt_path=last", *NOTE, workspace=tmp_path)
    assert run.summary["steps"] == 12
    noted = [json.loads(line) for line in (tmp_path / "schedule.jsonl").read_text().splitlines()]
    assert [step for step, _, _ in noted] == list(range(12))
    _, rate, temperature = zip(*noted[1:])
    assert all(later < earlier for earlier, later in pairwise(rate))
    assert all(later < earlier for earlier, later in pairwise(temperature))


def test_a_run_that_has_ended_is_not_trained_on_at_a_rate_of_zero(fit, tmp_path):
    fit("--trainer.max_steps=3", "--trainer.val_check_interval=2", workspace=tmp_path)
    with pytest.raises(SystemExit, match=r"learning rate is 0 since step 3, so that 5 steps would change nothing"):
        fit("--trainer.max_steps=5", "--ckpt_path=last", workspace=tmp_path)
    assert newest(tmp_path).summary["steps"] == 3
    earlier = newest(tmp_path).folder / "checkpoints" / "step=2.ckpt"
    assert fit("--trainer.max_steps=5", f"--ckpt_path={earlier}", workspace=tmp_path).summary["steps"] == 5
