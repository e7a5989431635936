"""What a sweep file may say of its space, and what Optuna makes of it."""

import math

import optuna
import pytest

from c2c_lightning.errors import UserError
from c2c_lightning.sweep.space import Space

EVERY_KIND = {
    "layers": {"choice": ["all", "last:2", [0, 3]]},
    "gate": {"grid": [{"kind": "open"}, {"kind": "fixed", "open_layers": [1]}]},
    "init": {"uniform": [-1, 2.5]},
    "lr": {"loguniform": [1e-4, 1e-2]},
    "hidden": {"int": [16, 128], "step": 16},
    "open": {"layers": [0, 1, 2, 3], "least": 2, "most": 3},
}


def there_and_back(space: Space, point: dict) -> dict:
    """A point as Optuna hands it out that was told to try it."""
    study = optuna.create_study()
    study.enqueue_trial(space.encode(point))
    return space.sample(study.ask())


def sampled(space: Space, number: int, sampler: optuna.samplers.BaseSampler | None = None) -> list[dict]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler or optuna.samplers.RandomSampler(seed=0))
    points = []
    for _ in range(number):
        trial = study.ask()
        points.append(space.sample(trial))
        study.tell(trial, 0.0)
    return points


def test_samples_lie_in_their_domains():
    points = sampled(Space(EVERY_KIND), 200)
    for point in points:
        assert point["layers"] in ["all", "last:2", [0, 3]]
        assert point["gate"] in EVERY_KIND["gate"]["grid"]
        assert -1 <= point["init"] <= 2.5
        assert 1e-4 <= point["lr"] <= 1e-2
        assert point["hidden"] in range(16, 129, 16)
        assert 2 <= len(point["open"]) <= 3
        assert set(point["open"]) <= {0, 1, 2, 3}
    # Of a logarithmic range as much lies below its geometric mean as above.
    assert 60 < sum(point["lr"] < 1e-3 for point in points) < 140
    assert {tuple(point["open"]) for point in points} >= {(0, 1), (2, 3), (1, 2, 3), (0, 2, 3)}


def test_a_point_goes_to_optuna_and_back():
    space = Space(EVERY_KIND)
    for point in sampled(space, 50):
        assert there_and_back(space, point) == point


def test_a_grid_has_every_point_once():
    space = Space({"open": {"layers": [0, 1, 2]}, "hidden": {"int": [16, 48], "step": 16}, "x": {"grid": ["a", "b"]}})
    points = space.grid()
    assert len(points) == 7 * 3 * 2
    assert len({str(point) for point in points}) == len(points)
    assert all(there_and_back(space, point) == point for point in points)


def test_the_edges_have_every_choice_and_both_ends():
    edges = Space(EVERY_KIND).edges()
    assert [point["layers"] for point in edges] == ["all", "last:2", [0, 3]]
    assert {-1, 2.5} <= {point["init"] for point in edges}
    assert {16, 128} <= {point["hidden"] for point in edges}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"choise": [1]}, r"space\.key says choise\. Did you mean choice\?"),
        ({"choice": []}, "has no values"),
        ({"grid": "all"}, "has grid: 'all': give a list"),
        ({"uniform": [2, 1]}, "goes from 2 to 1"),
        ({"uniform": [1]}, "give the lowest and the highest number"),
        ({"loguniform": [0, 1]}, "begins at 0: it must be positive"),
        ({"int": [1, 8], "stop": 2}, r"has 'stop' beside int\. Did you mean step\?"),
        ({"layers": [0, 1], "least": 3}, "asks for 3 to 2 of 2"),
        ({"layers": [0, 1], "least": 0}, "has least 0: it must be at least 1, as a fuser of no layer learns nothing"),
        ({"layers": [0, 1], "most": "all"}, "has most: 'all': give a whole number"),
        ({"layers": [0, 1, 0]}, r"has a layer twice in \[0, 1, 0\]"),
        ({"int": [1.5, 8]}, "goes from 1.5 to 8: both must be whole numbers"),
        ({"int": [1, 8], "step": 1.5}, "has step: 1.5: give a whole number"),
        ({"int": [1, 8], "log": "no"}, "has log: 'no': give true or false"),
        ({"uniform": [0, math.inf]}, "give the lowest and the highest number"),
        ({"uniform": [False, True]}, "give the lowest and the highest number"),
        ({"choice": [1], "grid": [2]}, "says choice, grid"),
        ([1, 2], r"is \[1, 2\]: give \{choice"),
    ],
)
def test_what_is_no_domain_is_refused_by_key(spec, message):
    with pytest.raises(UserError, match=message) as refused:
        Space({"key": spec})
    assert str(refused.value).startswith("space.key")
    assert str(refused.value)[-2].isalnum() or str(refused.value)[-2] in "'])}", "it ends like one sentence"


@pytest.mark.parametrize("value", ["../x", "a...b", "up.."])
def test_a_value_is_named_as_it_is_written(value):
    with pytest.raises(UserError, match="give a list") as refused:
        Space({"key": {"grid": value}})
    assert f"'{value}'" in str(refused.value)
    with pytest.raises(UserError, match="which is none of") as refused:
        Space({"key": {"grid": ["x"]}}).encode({"key": value})
    assert f"'{value}'" in str(refused.value)


def test_a_range_ends_where_its_steps_do():
    space = Space({"key": {"int": [16, 60], "step": 16}})
    assert [point["key"] for point in space.edges()] == [16, 48]
    assert [point["key"] for point in space.grid()] == [16, 32, 48]
    assert {point["key"] for point in sampled(space, 50)} == {16, 32, 48}


def test_a_whole_number_may_be_written_with_a_point():
    assert there_and_back(Space({"key": {"int": [16.0, 64], "step": 16}}), {"key": 32.0}) == {"key": 32}


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"layer": "all"}, r"first names layer, which is not in space\. Did you mean layers\?"),
        ({"layers": "first:9"}, "first has layers: 'first:9', which is none of all, last:2"),
        ({"init": 3}, "does not lie in -1 to 2.5"),
        ({"init": True}, "first has init: True, which does not lie in -1 to 2.5"),
        ({"init": math.nan}, "does not lie in -1 to 2.5"),
        ({"hidden": 24}, "first has hidden: 24, which lies between the steps 16 and 32"),
        ({"hidden": 16.5}, "first has hidden: 16.5, which is no whole number"),
        ({"hidden": "32"}, "does not lie in 16 to 128"),
        ({"open": [0]}, r"is not 2 to 3 of \[0, 1, 2, 3\]"),
        ({"open": []}, r"is not 2 to 3 of \[0, 1, 2, 3\]"),
        ({"open": [0, 0]}, r"is not 2 to 3 of \[0, 1, 2, 3\]"),
        ({"open": [0, 7]}, r"is not 2 to 3 of \[0, 1, 2, 3\]"),
        ({"open": 3}, r"is not 2 to 3 of \[0, 1, 2, 3\]"),
    ],
)
def test_what_is_to_be_tried_first_must_lie_in_the_space(point, message):
    with pytest.raises(UserError, match=message):
        Space(EVERY_KIND).encode(point)


def test_an_endless_grid_is_refused():
    with pytest.raises(UserError, match=r"search is grid, but space\.lr has endless values"):
        Space({"lr": {"uniform": [0, 1]}}).grid()


def test_values_that_are_equal_to_python_and_not_to_a_user_are_all_tried():
    values = [0, False, 1, True, 1.5, "1", None, "null"]
    space = Space({"key": {"choice": values}})
    tried = [there_and_back(space, {"key": value})["key"] for value in values]
    assert [repr(value) for value in tried] == [repr(value) for value in values]
    assert {repr(point["key"]) for point in sampled(space, 100)} == {repr(value) for value in values}


def test_a_number_to_try_first_may_be_written_with_a_point_or_without():
    assert there_and_back(Space({"key": {"choice": [1.0, "x"]}}), {"key": 1}) == {"key": 1.0}
    with pytest.raises(UserError, match=r"which is none of 1\.0, x"):
        Space({"key": {"choice": [1.0, "x"]}}).encode({"key": True})
