"""Which trials a process trains together."""

import pytest

from c2c_lightning.sweep import shared_trial
from c2c_lightning.sweep.shared_trial import Pool


@pytest.fixture
def quiet(monkeypatch):
    """Nobody is waited for."""
    monkeypatch.setattr(shared_trial, "QUIET_SECONDS", -1.0)


def pool(size: int, **keys: str) -> Pool:
    made = Pool(size)
    for folder, key in keys.items():
        made.add(folder, key)
    return made


def test_a_full_group_begins_at_once_and_the_others_wait():
    waiting = pool(2, a="x", b="x", c="x")
    assert waiting.take(0) == ["a", "b"]
    assert waiting.take(1) == [], "one more might come"
    waiting.add("d", "x")
    assert waiting.take(1) == ["c", "d"]


def test_only_trials_that_may_share_are_in_one_group():
    waiting = pool(2, a="x", b="y", c="x", d="y")
    assert waiting.take(0) == ["a", "c"]
    assert waiting.take(1) == ["b", "d"]


def test_a_group_that_nobody_joins_begins_as_it_is(quiet):
    waiting = pool(4, a="x", b="x", c="y")
    assert waiting.take(0) == ["a", "b"]
    assert waiting.take(1) == ["c"]


def test_a_trial_is_busy_from_its_coming_until_its_runner_asks_for_more():
    waiting = pool(1, a="x")
    assert waiting.is_busy("a")
    waiting.take(0)
    waiting.take(1)
    assert waiting.is_busy("a")
    waiting.take(0)
    assert not waiting.is_busy("a")


def test_who_is_withdrawn_is_not_trained(quiet):
    waiting = pool(2, a="x", b="x")
    waiting.withdraw("a")
    assert waiting.take(0) == ["b"]
    assert not waiting.is_busy("a")


def test_the_group_of_a_lost_runner_waits_again_without_those_that_have_ended(quiet, monkeypatch, tmp_path):
    folders = {name: str(tmp_path / name) for name in "abc"}
    for folder in folders.values():
        (tmp_path / folder).mkdir()
    waiting = pool(3)
    for folder in folders.values():
        waiting.add(folder, "x")
    assert waiting.take(0) == list(folders.values())
    (tmp_path / "b" / "summary.json").touch()
    monkeypatch.setattr(shared_trial, "LOST_SECONDS", -1.0)
    assert waiting.take(1) == [folders["a"], folders["c"]]
    assert not waiting.is_busy(folders["b"])


def test_a_runner_that_was_given_up_is_told_to_stop(quiet, monkeypatch):
    waiting = pool(1, a="x")
    waiting.take(0)
    assert waiting.may_go_on(0, ["a"])
    monkeypatch.setattr(shared_trial, "LOST_SECONDS", -1.0)
    assert waiting.take(1) == ["a"]
    assert not waiting.may_go_on(0, ["a"])


def test_a_trial_that_comes_again_while_it_runs_only_follows():
    waiting = pool(1, a="x")
    waiting.take(0)
    waiting.add("a", "x")
    assert waiting.waiting == {}


def test_all_stop_when_the_sweep_ends():
    waiting = pool(1, a="x")
    waiting.take(0)
    assert waiting.close() == [0]
    assert not waiting.may_go_on(0, ["a"])
    assert not waiting.may_go_on(1, [])
