"""The search as Ray asks for it, and as a driver finds it again that took over from one that died."""

import math

import optuna
import pytest

from c2c_lightning.sweep.search import StudySearch, open_study
from c2c_lightning.sweep.settings import Sweep
from c2c_lightning.sweep.space import Space

METRIC = "m"
LAYERS = {"layers": {"choice": ["all", "last:2", [0, 3]]}, "init": {"uniform": [-1, 1]}}


def search(folder, space=LAYERS, trials=6, **settings) -> StudySearch:
    settings = {"search": "random", "metric": METRIC, "trials": trials, **settings}
    sweep = Sweep(space=space, **settings)
    made = Space(space)
    return StudySearch(
        open_study(folder, sweep, made), made, trials, lambda n, v: {"number": n, "values": v}, METRIC, "max"
    )


def end(searching: StudySearch, name: str, value: float = 0.5, **result) -> None:
    searching.on_trial_complete(name, {METRIC: value, "step": 300, "finished": True, **result})


def test_numbers_count_up_until_there_are_enough(tmp_path):
    searching = search(tmp_path, trials=3)
    assert [searching.suggest(f"t{i}")["number"] for i in range(3)] == [0, 1, 2]
    assert searching.suggest("t3") == StudySearch.FINISHED


def test_a_trial_that_was_cut_off_is_handed_out_again_with_its_values(tmp_path):
    first = search(tmp_path)
    begun = [first.suggest(f"t{i}") for i in range(3)]
    end(first, "t1")
    # The driver is killed here; nothing was saved on purpose.
    second = search(tmp_path)
    assert second.left() == 5
    assert [second.suggest("a"), second.suggest("b")] == [begun[0], begun[2]]
    assert second.suggest("c")["number"] == 3
    end(second, "a", 0.25)
    values = {trial.number: trial.value for trial in search(tmp_path).study.trials}
    assert (values[0], values[1], values[2]) == (0.25, 0.5, None)


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_sweep_that_is_resumed_tries_other_points(tmp_path, kind):
    tried = []
    for driver in range(3):
        searching = search(tmp_path, search=kind, trials=9)
        for i in range(3):
            tried.append(searching.suggest(f"{driver} {i}")["values"]["init"])
            end(searching, f"{driver} {i}")
    assert len(set(tried)) == 9


def test_a_grid_whose_driver_was_killed_while_it_was_laid_out_is_completed(tmp_path):
    space = {"init": {"grid": [0, 1, 2]}}
    searching = search(tmp_path, {"init": {"grid": [0]}}, 1, search="grid")
    assert len(searching.study.trials) == 1
    points = [
        trial.system_attrs["fixed_params"]["init"] for trial in search(tmp_path, space, 3, search="grid").study.trials
    ]
    assert points == [0, 1, 2]


def test_reports_of_a_trial_that_is_resumed_count_once(tmp_path, recwarn):
    first = search(tmp_path)
    first.suggest("t0")
    first.on_trial_result("t0", {METRIC: 0.1, "step": 100})
    second = search(tmp_path)
    second.suggest("a")
    for step in (100, 200):
        second.on_trial_result("a", {METRIC: step / 1000, "step": step})
    assert second.study.trials[0].intermediate_values == {100: 0.1, 200: 0.2}
    assert not [warning for warning in recwarn if "already" in str(warning.message)]


def test_what_became_of_a_trial_is_told_to_the_sampler(tmp_path):
    searching = search(tmp_path)
    for name in ("finished", "stopped", "not a number"):
        searching.suggest(name)
    end(searching, "finished", 0.9)
    searching.on_trial_result("stopped", {METRIC: 0.1, "step": 50})
    # Tune tells of the result by which a trial is stopped only here.
    searching.on_trial_complete("stopped", {METRIC: 0.2, "step": 100, "finished": False})
    end(searching, "not a number", math.nan)
    trials = searching.study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert searching.study.best_value == 0.9
    assert trials[1].intermediate_values == {50: 0.1, 100: 0.2}
    assert math.isnan(trials[2].intermediate_values[300])


def test_a_trial_that_failed_is_handed_out_once_more_when_the_sweep_is_resumed(tmp_path):
    searching = search(tmp_path, trials=3)
    begun = [searching.suggest(name) for name in ("crashed", "refused", "finished")]
    searching.on_trial_complete("crashed", {METRIC: 0.1, "step": 100}, error=True)
    searching.on_trial_complete("refused", {"step": 0, "refused": "the store is locked"})
    end(searching, "finished")
    assert searching.left() == 0, "not while the sweep goes on"
    assert searching.suggest("again") == StudySearch.FINISHED

    resumed = search(tmp_path, trials=3)
    assert resumed.left() == 2
    assert [resumed.suggest("a"), resumed.suggest("b")] == begun[:2]
    end(resumed, "a", 0.7)
    assert resumed.suggest("c") == StudySearch.FINISHED
    assert [trial.value for trial in resumed.study.trials] == [0.7, None, 0.5], "it counts once"
    assert search(tmp_path, trials=3).left() == 1


def test_points_to_try_first_come_first_and_only_once(tmp_path):
    first = [{"layers": "last:2", "init": 0.5}, {"layers": [0, 3]}]
    searching = search(tmp_path, first=first)
    begun = [searching.suggest(f"t{i}")["values"] for i in range(2)]
    assert begun[0] == first[0]
    assert begun[1]["layers"] == [0, 3]
    assert len(search(tmp_path, first=first).study.trials) == 2


def test_a_grid_is_tried_in_order_and_to_its_end(tmp_path):
    space = {"layers": {"grid": ["all", [0]]}, "init": {"grid": [0, 1]}}
    searching = search(tmp_path, space, 4, search="grid")
    tried = []
    for i in range(4):
        tried.append(searching.suggest(f"t{i}")["values"])
        end(searching, f"t{i}")
    assert tried == [{"layers": layers, "init": init} for layers in ("all", [0]) for init in (0, 1)]
    assert searching.suggest("t4") == StudySearch.FINISHED


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_the_same_seed_asks_the_same(tmp_path, kind):
    asked = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        searching = search(tmp_path / name, search=kind, seed=3)
        asked.append([searching.suggest(f"t{i}")["values"] for i in range(5)])
    assert asked[0] == asked[1]


def test_tpe_finds_the_layer_that_counts(tmp_path):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searching = search(tmp_path, {"open": {"layers": list(range(6))}}, 40, search="tpe")
    suggested = []
    for i in range(40):
        layers = searching.suggest(f"t{i}")["values"]["open"]
        suggested.append(layers)
        end(searching, f"t{i}", (4 in layers) - 0.05 * len(layers))
    later = suggested[20:]
    assert sum(4 in layers for layers in later) >= 16
    assert sum(len(layers) for layers in later) / 20 < 3
