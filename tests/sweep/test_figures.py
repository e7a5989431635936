"""The pictures of a sweep: what they show, and when there is nothing to show."""

import itertools
import random
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.image import imread

from c2c_lightning.sweep.figures import (
    distribution,
    draw_figures,
    draw_front,
    draw_gates,
    drawing,
    pareto_front,
)
from c2c_lightning.sweep.labels import plain_parameters
from c2c_lightning.sweep.results import ranking
from tests.sweep.invented import METRIC, big_sweep, gates, nano_sweep, trial


@pytest.mark.parametrize("sweep", [nano_sweep, lambda: big_sweep(24)], ids=["nano", "big"])
def test_every_figure_is_drawn_wide_enough_and_not_blank(sweep, tmp_path):
    said = []
    figures = draw_figures(sweep(), METRIC, "max", tmp_path / "figures", said.append)
    assert [file.name for file in figures.values()] == ["importance.png", "values.png", "open_layers.png", "gates.png"]
    assert not said
    for file in figures.values():
        image = imread(file)
        assert image.shape[1] >= 1200
        assert image[..., :3].std() > 0.02
    assert "plotly" not in sys.modules


def test_optunas_style_is_gone_afterwards(tmp_path):
    before = dict(plt.rcParams)
    draw_figures(nano_sweep(), METRIC, "max", tmp_path)
    assert dict(plt.rcParams) == before
    assert not plt.get_fignums()


def test_what_would_say_nothing_is_left_out_with_the_reason(tmp_path):
    def left_out(trials) -> dict[str, str]:
        said = []
        figures = draw_figures(trials, METRIC, "max", tmp_path, said.append)
        reasons = {line.split()[2].partition(".")[0]: line for line in said}
        assert len(figures) + len(reasons) == 4
        return reasons

    one_scored = [trial(0, 0.5), trial(1, None), trial(2, 0.4, state="failed"), trial(3, state="waiting")]
    assert len(left_out(one_scored)) == 4
    one_key = [trial(n, 0.1 * n, num_open=n) for n in range(1, 8)]
    assert set(left_out(one_key)) == {"importance", "values"}
    assert "only lr differs" in left_out(one_key)["values"]
    two_keys = [trial(n, 0.5, values={"a": n, "b": 1 - n}) for n in range(2)]
    assert set(left_out(two_keys)) == {"importance", "values", "open_layers"}
    assert "4 open layers" in left_out(two_keys)["open_layers"]


def test_a_figure_that_cannot_be_drawn_costs_no_other(tmp_path):
    trials = nano_sweep()
    trials[0].progress[-1]["gates"] = [{"keys": {"no layer": 1.0}, "values": {}}]
    with pytest.warns(UserWarning, match=r"gates.png could not be drawn: ValueError"):
        figures = draw_figures(trials, METRIC, "max", tmp_path)
    assert [file.name for file in figures.values()] == ["importance.png", "values.png", "open_layers.png"]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_front_is_what_no_other_trial_beats(mode):
    rng = random.Random(3)
    trials = [trial(n, rng.choice([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), rng.randint(0, 8)) for n in range(40)]
    sign = 1 if mode == "max" else -1

    def beats(one, other) -> bool:
        gains = sign * (one.score(METRIC) - other.score(METRIC)), other.num_open - one.num_open
        return min(gains) >= 0 and max(gains) > 0

    expected = {one.number for one in trials if not any(beats(other, one) for other in trials)}
    front = pareto_front(trials, METRIC, mode)
    assert {one.number for one in front} == expected
    assert all(a.num_open <= b.num_open for a, b in itertools.pairwise(front))


def test_stopped_trials_are_hollow_and_not_on_the_front():
    trials = [trial(0, 0.5, 4), trial(1, 0.7, 6), trial(2, 0.9, 2, "stopped"), trial(3, 0.6, 7, "stopped")]
    with drawing():
        axis = draw_front(trials, METRIC, "max").axes[0]
    faces = {str(dots.get_label()): dots.get_facecolor()[0][:3] for dots in axis.collections}
    assert tuple(faces["stopped early"]) == (1, 1, 1)
    assert tuple(faces["finished"]) != (1, 1, 1)
    assert [text.get_text() for text in axis.texts] == ["0", "1"]
    (line,) = axis.lines
    assert list(line.get_xdata()) == [4, 6]
    assert list(line.get_ydata()) == pytest.approx([50, 70])


def test_the_heat_map_shows_open_closed_and_not_mapped():
    opened = {"keys": {1}, "values": set()}
    best, worst = trial(0, 0.9), trial(1, 0.1, state="stopped")
    best.progress[-1]["gates"] = gates(3, opened, mapped=[0, 1])
    worst.progress[-1]["gates"] = [{"keys": {"1": 0.5, "2": 1.0}}]
    trials = ranking([worst, best], METRIC, "max")
    with drawing():
        axes = draw_gates(trials, METRIC, "max").axes
    keys, values = (axis.images[0].get_array() for axis in axes[:2])
    white = np.ones(3)
    np.testing.assert_array_equal(keys[..., 3], [[1, 0], [1, 1], [0, 1]])  # seen where mapped; layers upwards
    np.testing.assert_allclose(keys[0, 0, :3], white)
    np.testing.assert_allclose(keys[1, 1, :3], (white + keys[2, 1, :3]) / 2)  # half of the heads
    assert keys[1, 0, :3].sum() < keys[2, 1, :3].sum(), "the better the darker"
    np.testing.assert_array_equal(values[..., 3], [[1, 0], [1, 0]])
    assert [label.get_text() for label in axes[1].get_xticklabels()] == ["0", "1"]


def test_parameters_are_numbers_and_short_texts_that_tell_values_apart():
    hidden = [{"class_path": "C2CFuser", "init_args": {"hidden": h, "dropout": 0.0}} for h in (64, 128, 64)]
    values = [
        {"m.fuser": h, "m.lr": lr, "m.layers": x} for h, lr, x in zip(hidden, (1e-5, 1e-4, 1e-2), ([1], [2], [1]))
    ]
    found = plain_parameters([trial(n, 0.5, values=v) for n, v in enumerate(values)])
    assert found == {
        "fuser": ["hidden=64", "hidden=128", "hidden=64"],
        "lr": [1e-5, 1e-4, 1e-2],
        "layers": ["1", "2", "1"],
    }


def test_long_texts_that_begin_alike_stay_different():
    values = [f"{'a' * 40}{n}" for n in range(3)]
    found = plain_parameters([trial(n, 0.5, values={"k": value}) for n, value in enumerate(values)])
    assert len(set(found["k"])) == 3


def test_many_different_lists_become_their_length_or_their_members():
    lists = [[n, n + 1] if n % 2 else [n] for n in range(10)]
    trials = [trial(n, 0.5, values={"model.layers": layers}) for n, layers in enumerate(lists)]
    assert plain_parameters(trials) == {"number of layers": [len(layers) for layers in lists]}
    members = plain_parameters(trials, list_members=True)
    assert members["layers: 4"] == [4 in layers for layers in lists]


def test_values_decades_apart_are_on_a_logarithmic_scale():
    assert distribution([1e-5, 1e-4, 1e-2]).log
    assert not distribution([0.001, 0.01]).log
    assert not distribution([0.0, 0.01, 10.0]).log
    assert distribution([1, 1000]).log
    assert distribution(["a", "b", "a"]).choices == ("a", "b")
