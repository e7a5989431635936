"""Which trials a process trains together, and what becomes of them when it ends, however it does."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from c2c_lightning.models.loading import PROJECT
from c2c_lightning.sweep.process import held, log_tail
from c2c_lightning.sweep.process_trial import GROUP_FILE, TrialCrashed
from c2c_lightning.sweep.settings import Resources
from c2c_lightning.sweep.shared_trial import ALONE_FILE, Pool, Runner, SharedTrial, origin, runners
from tests.sweep.sweeps import wait_for


def pool(size: int, lost_seconds: float = 30.0, quiet_seconds: float = 5.0, **keys: str) -> Pool:
    """Trials that wait, by name their key; runners 0 and 1 have begun, for the first time."""
    made = Pool(size, quiet_seconds, lost_seconds)
    assert [made.begin(0), made.begin(1)] == [0, 1]
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


def test_a_group_that_nobody_joins_begins_as_it_is():
    waiting = pool(4, quiet_seconds=-1.0, a="x", b="x", c="y")
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


def test_who_is_withdrawn_is_not_trained():
    waiting = pool(2, quiet_seconds=-1.0, a="x", b="x")
    waiting.withdraw("a")
    assert waiting.take(0) == ["b"]
    assert not waiting.is_busy("a")


def test_the_group_of_a_lost_runner_waits_again_without_those_that_have_ended(tmp_path):
    folders = {name: str(tmp_path / name) for name in "abc"}
    for folder in folders.values():
        (tmp_path / folder).mkdir()
    waiting = pool(3, quiet_seconds=-1.0)
    for folder in folders.values():
        waiting.add(folder, "x")
    assert waiting.take(0) == list(folders.values())
    (tmp_path / "b" / "summary.json").touch()
    waiting.lost_seconds = -1.0
    assert waiting.take(1) == [folders["a"], folders["c"]]
    assert not waiting.is_busy(folders["b"])


def test_a_runner_that_was_given_up_is_told_to_stop():
    waiting = pool(1, a="x")
    waiting.take(0)
    assert waiting.may_go_on(0, ["a"])
    waiting.lost_seconds = -1.0
    assert waiting.take(1) == ["a"]
    assert not waiting.may_go_on(0, ["a"])


def test_the_group_of_a_runner_that_begins_again_waits_again_as_it_was():
    waiting = pool(2, a="x", b="x", c="x", d="x")
    assert waiting.take(0) == ["a", "b"]
    start = waiting.begin(0)
    assert not waiting.may_go_on(0), "what is left of its first start"
    assert waiting.is_busy("a")
    assert waiting.take(1) == ["c", "d"]
    assert waiting.take(start) == ["a", "b"]
    assert waiting.may_go_on(start, ["a", "b"])


def test_a_trial_that_comes_again_while_it_runs_only_follows():
    waiting = pool(1, a="x")
    waiting.take(0)
    waiting.add("a", "x")
    assert waiting.waiting == {}


def test_all_stop_when_the_sweep_ends():
    waiting = pool(1, a="x")
    waiting.take(0)
    assert waiting.close() == [0, 1]
    assert not waiting.may_go_on(0, ["a"])
    assert not waiting.may_go_on(1, [])


def save_checkpoint(folder: Path, group: str | None) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    if group is not None:
        (folder / GROUP_FILE).write_text(group)


def test_only_who_has_no_checkpoint_or_was_trained_together_last_can_go_on_together(tmp_path):
    for name, group in {"a": "a b", "b": "a b", "c": "c d", "alone": None, "by itself": None}.items():
        save_checkpoint(tmp_path / name, group)
    of = {name: origin(tmp_path / name) for name in ("a", "b", "c", "alone", "by itself", "new", "also new")}
    assert of["a"] == of["b"]
    assert of["new"] == of["also new"]
    assert len(set(of.values())) == 5


@pytest.fixture(scope="module")
def local_ray():
    """Ray with two CPUs."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def actor(local_ray):
    """A pool as trials and runners have it, of one trial at a time; runner 0 has begun."""
    made = ray.remote(num_cpus=0)(Pool).remote(2, 0.0, 2.0)
    assert ray.get(made.begin.remote(0)) == 0
    yield made
    ray.kill(made)


def shared_trial(folder: Path, pool: ray.actor.ActorHandle) -> SharedTrial:
    folder.mkdir(exist_ok=True)
    return SharedTrial({"folder": str(folder), "metric": "val/loss", "key": "x", "pool": pool})


def test_trials_of_a_group_that_crashed_run_alone_and_fail_there_by_themselves(tmp_path, actor):
    trials = [shared_trial(tmp_path / name, actor) for name in "ab"]
    both = [str(tmp_path / name) for name in "ab"]
    assert ray.get(actor.take.remote(0)) == both
    # The process ended without a result.
    assert ray.get(actor.take.remote(0)) == []
    wait_for(lambda: all(trial.has_ended() for trial in trials), "they hear of it", seconds=10.0)
    assert [trial.step() for trial in trials] == [{"step": 0}] * 2
    assert [(tmp_path / name / ALONE_FILE).exists() for name in "ab"] == [True, True]
    assert [ray.get(actor.take.remote(0)), ray.get(actor.take.remote(0))] == [[folder] for folder in both]
    wait_for(trials[0].has_ended, "it hears of it", seconds=10.0)
    with pytest.raises(TrialCrashed):
        trials[0].step()
    assert not trials[1].has_ended()


def test_a_trial_that_was_alone_when_it_crashed_is_not_tried_again_for_free(tmp_path, actor):
    trial = shared_trial(tmp_path / "a", actor)
    ray.get(actor.take.remote(0))
    (tmp_path / "a" / GROUP_FILE).write_text(str(tmp_path / "a"))
    ray.get(actor.take.remote(0))
    wait_for(trial.has_ended, "it hears of it", seconds=10.0)
    with pytest.raises(TrialCrashed):
        trial.step()


def test_a_trial_that_is_stopped_early_leaves_word_for_the_process_that_trains_it(tmp_path, actor):
    running, waiting = (shared_trial(tmp_path / name, actor) for name in "ab")
    ray.get(actor.withdraw.remote(str(tmp_path / "b")))
    assert ray.get(actor.take.remote(0)) == [str(tmp_path / "a")]
    waiting.start(waiting.config)
    row = {"time": 0.0, "step": 5, "max_steps": 10, "metrics": {"val/loss": 0.5}, "gates": []}
    (tmp_path / "a" / "progress.jsonl").write_text(json.dumps(row) + "\n")
    assert running.step() == {"val/loss": 0.5, "step": 5, "percent": 50, "finished": False, "done": False}
    for trial in (running, waiting):  # as Tune does with what ASHA stops
        trial.stop()
    assert (tmp_path / "a" / "stop").exists()
    assert ray.get(actor.is_busy.remote(str(tmp_path / "a"))), "until its next validation"
    assert not ray.get(actor.is_busy.remote(str(tmp_path / "b")))


def test_a_trial_that_comes_again_leaves_what_is_being_trained_alone(tmp_path, actor):
    shared_trial(tmp_path / "a", actor)
    assert ray.get(actor.take.remote(0)) == [str(tmp_path / "a")]
    for name in ("config.yaml", "progress.jsonl"):
        (tmp_path / "a" / name).touch()
    shared_trial(tmp_path / "a", actor)
    assert (tmp_path / "a" / "config.yaml").exists()
    assert (tmp_path / "a" / "progress.jsonl").exists()


@contextmanager
def runner(pool: ray.actor.ActorHandle) -> Iterator[None]:
    """A runner for a while, in this process."""
    with ThreadPoolExecutor() as thread:
        running = thread.submit(Runner().run, 1, pool, str(PROJECT), 1.0)
        try:
            yield
        finally:
            ray.get(pool.close.remote())
        running.result(30.0)


def test_a_runner_that_waits_for_a_folder_is_not_taken_for_lost(tmp_path, actor):
    """It is lost when it was not heard of for two seconds."""
    (tmp_path / "a").mkdir()
    with runner(actor), held([tmp_path / "a"]):
        shared_trial(tmp_path / "a", actor)
        wait_for(lambda: "waiting for process" in log_tail(tmp_path / "a"), "it waits", seconds=10.0)
        time.sleep(3.0)
        assert ray.get(actor.take.remote(0)) == []
        (tmp_path / "a" / "summary.json").touch()  # so that nothing is left to train


def test_what_goes_wrong_in_a_runner_is_in_the_trials_logs_and_the_runner_goes_on(tmp_path, local_ray):
    with runners(1, Resources(), 2, tmp_path / "nowhere") as pool:
        for attempt in (1, 2):
            trial = shared_trial(tmp_path / "a", pool)
            wait_for(trial.has_ended, "it hears of it", seconds=30.0)
            with pytest.raises(TrialCrashed, match="nowhere"):
                trial.step()
            assert log_tail(tmp_path / "a").count("FileNotFoundError: ") == attempt


def test_if_no_runner_is_left_trials_are_told_why(tmp_path, actor):
    @ray.remote(num_cpus=0)
    def runner() -> None:
        raise RuntimeError("no such environment")

    ray.get(actor.watch.remote([runner.remote()]))
    trial = shared_trial(tmp_path / "a", actor)
    wait_for(trial.has_ended, "it hears of it", seconds=30.0)
    assert "RuntimeError: no such environment" in log_tail(tmp_path / "a")


def test_a_group_that_others_brought_to_different_steps_is_trained_in_parts(tmp_path, actor):
    """By an orphan of an earlier driver, say, which saved a checkpoint after they had come."""
    for name in "ab":
        shared_trial(tmp_path / name, actor)
    save_checkpoint(tmp_path / "a", None)
    with runner(actor):
        # Neither can be trained, for want of a configuration.
        wait_for(lambda: "there is no" in log_tail(tmp_path / "b"), "both were tried", seconds=60.0)
    for name in "ab":
        assert (tmp_path / name / GROUP_FILE).read_text() == str(tmp_path / name)
        assert f"there is no {tmp_path / name / 'trial.yaml'}, a configuration" in log_tail(tmp_path / name)
