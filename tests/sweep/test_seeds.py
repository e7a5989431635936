"""What a sweep says of a point that was trained under several seeds."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from c2c_lightning.sweep.results import draw_over_seeds, over_seeds, write_over_seeds
from tests.sweep.invented import METRIC, trial

C2C = {1: 0.90, 2: 0.92, 3: 0.97}
LOW_RANK = {1: 0.88, 2: 0.91, 3: 0.91}


def sweep(**metrics):
    trials = []
    for name, scores in (("C2CFuser", C2C), ("LowRankFuser", LOW_RANK)):
        for seed, score in scores.items():
            values = {"seed_everything": seed, "model.fuser": {"class_path": f"c2c_lightning.fuser.{name}"}}
            trials.append(trial(len(trials), score, values=values))
            trials[-1].progress[-1]["metrics"] |= metrics
    return trials


def test_means_and_intervals_are_those_of_students_t():
    first, second = over_seeds(sweep(), METRIC).to_dict("records")
    assert (first["point"], first["seeds"]) == ("C2CFuser", 3)
    assert first["metric"] == pytest.approx(0.93)
    # The quantile for 2 degrees of freedom is 4.3027, as tables have it.
    half = 4.3027 * np.std([0.90, 0.92, 0.97], ddof=1) / 3**0.5
    assert first["metric_low"] == pytest.approx(0.93 - half, abs=1e-5)
    assert first["metric_high"] == pytest.approx(0.93 + half, abs=1e-5)
    half = 4.3027 * np.std([-0.02, -0.01, -0.06], ddof=1) / 3**0.5
    assert second["difference"] == pytest.approx(-0.03)
    assert second["difference_high"] == pytest.approx(-0.03 + half, abs=1e-5)


def test_a_difference_is_of_the_same_seeds():
    trials = sweep()
    trials[3].values["seed_everything"] = 7  # so that seeds 2 and 3 are all that both have
    assert over_seeds(trials, METRIC)["difference"][1] == pytest.approx((-0.01 - 0.06) / 2)


def test_the_gain_is_above_the_better_control_and_unknown_where_one_is():
    controls = {"val/accuracy/receiver": 0.08, "val/accuracy/wrong_question": 0.10}
    assert over_seeds(sweep(**controls), METRIC)["gain"][0] == pytest.approx(0.83)
    for known in ({}, {"val/accuracy/receiver": 0.08}, {"val/accuracy/wrong_question": 0.10}):
        assert np.isnan(over_seeds(sweep(**known), METRIC)["gain"][0])


def test_what_finished_under_one_seed_or_not_at_all_is_left_out():
    trials = sweep()
    for unfinished in trials[4:]:
        unfinished.state = "stopped"
    assert list(over_seeds(trials, METRIC)["point"]) == ["C2CFuser"]


def test_tables_and_figure_are_written_for_a_sweep_over_seeds_and_for_no_other(tmp_path):
    trials = sweep(**{"fuser/parameters": 1234567.0})
    csv, table = write_over_seeds(over_seeds(trials, METRIC), METRIC, tmp_path)
    assert csv.read_text().count("\n") == 3
    text = table.read_text()
    assert "| C2CFuser" in text
    assert "1,234,567" in text
    assert "−3.0 [−9.6, +3.6]" in text
    assert "100.0%]" in text  # and no more, though the t-interval has
    [figure] = draw_over_seeds(over_seeds(trials, METRIC), METRIC, tmp_path).values()
    assert imread(figure)[..., :3].std() > 0.02
    other = [trial(0, 0.5), trial(1, 0.6)]
    assert write_over_seeds(over_seeds(other, METRIC), METRIC, tmp_path) == []
    assert draw_over_seeds(over_seeds(other, METRIC), METRIC, tmp_path) == {}


def test_a_sweep_over_nothing_but_seeds_has_one_row():
    trials = [trial(seed, score, values={"seed_everything": seed}) for seed, score in C2C.items()]
    assert list(over_seeds(trials, METRIC)["seeds"]) == [3]


def test_a_gain_that_is_unknown_under_one_seed_is_unknown():
    trials = sweep(**{"val/accuracy/receiver": 0.08, "val/accuracy/wrong_question": 0.10})
    trials[0].progress[-1]["metrics"] |= {"val/accuracy/receiver": None}
    gains = over_seeds(trials, METRIC)["gain"]
    assert np.isnan(gains[0])
    assert gains[1] == pytest.approx(0.80)
