"""What a sweep file may say of its space, and what Optuna makes of it."""

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
        ({"choice": [1], "grid": [2]}, "says choice, grid"),
        ([1, 2], r"is \[1, 2\]: give \{choice"),
    ],
)
def test_what_is_no_domain_is_refused_by_key(spec, message):
    with pytest.raises(UserError, match=message) as refused:
        Space({"key": spec})
    assert str(refused.value).startswith("space.key")


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"layer": "all"}, r"first names layer, which is not in space\. Did you mean layers\?"),
        ({"layers": "first:9"}, "first has layers: 'first:9', which is none of all, last:2"),
        ({"init": 3}, "does not lie in -1 to 2.5"),
        ({"open": [0]}, r"is not 2 to 3 of \[0, 1, 2, 3\]"),
    ],
)
def test_what_is_to_be_tried_first_must_lie_in_the_space(point, message):
    with pytest.raises(UserError, match=message):
        Space(EVERY_KIND).encode(point)


def test_an_endless_grid_is_refused():
    with pytest.raises(UserError, match=r"search is grid, but space\.lr has endless values"):
        Space({"lr": {"uniform": [0, 1]}}).grid()
