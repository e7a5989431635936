"""What a runner does with what it finds in its trials' folders, and Ray that does not start or has no room."""

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.util import placement_group

from c2c_lightning.errors import UserError
from c2c_lightning.files import PROJECT
from c2c_lightning.sweep.process import held, log_tail
from c2c_lightning.sweep.runner import GROUP_FILE, Runner, arguments, clear_false_start, cluster, origin, room_for
from c2c_lightning.sweep.settings import Resources
from tests.sweep.sweeps import wait_for

ROW = {"time": 0.0, "step": 5, "max_steps": 10, "metrics": {"val/loss": 0.5}, "gates": []}


def save_checkpoint(folder: Path, group: str | None = None) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "config.yaml").touch()
    (folder / "progress.jsonl").write_text(json.dumps(ROW) + "\n")
    if group is not None:
        (folder / GROUP_FILE).write_text(group)


def train(*folders: Path) -> list[str]:
    """Runs a runner to the end of a process that ends at once, for want of a configuration."""
    return Runner().train([str(folder) for folder in folders], str(PROJECT), 1.0)


@contextmanager
def at_work(folder: Path, last: Callable[[], None]):
    """Another process has the folder, and does one last thing before it leaves it to whoever waits."""
    begun = threading.Event()

    def work() -> None:
        with held([folder]):
            begun.set()
            wait_for(lambda: "waiting for process" in log_tail(folder), "it is waited for", seconds=20.0)
            last()

    other = threading.Thread(target=work)
    other.start()
    assert begun.wait(10.0)
    yield
    other.join()


def test_a_trial_whose_orphan_still_runs_goes_on_from_what_that_saves_last(tmp_path):
    with at_work(tmp_path, lambda: save_checkpoint(tmp_path)):
        assert train(tmp_path) == [str(tmp_path)]
    assert arguments([tmp_path])[-2:] == ["--ckpt_path", str(tmp_path)]
    assert (tmp_path / "config.yaml").exists()


def test_a_trial_that_its_orphan_ends_is_not_begun_again(tmp_path):
    with at_work(tmp_path, lambda: (tmp_path / "summary.json").write_text("{}")):
        assert train(tmp_path) == []


def test_what_a_start_left_that_came_to_no_checkpoint_is_cleared(tmp_path):
    (tmp_path / "config.yaml").touch()
    clear_false_start(tmp_path)
    assert "--ckpt_path" not in arguments([tmp_path])
    assert not (tmp_path / "config.yaml").exists()


def test_half_a_row_that_a_kill_left_does_not_spoil_the_next(tmp_path):
    save_checkpoint(tmp_path)
    whole = (tmp_path / "progress.jsonl").read_text()
    (tmp_path / "progress.jsonl").write_text(whole + whole[:20])
    clear_false_start(tmp_path)
    assert (tmp_path / "progress.jsonl").read_text() == whole


def test_only_who_has_no_checkpoint_or_was_trained_together_last_can_go_on_together(tmp_path):
    for name, group in {"a": "a b", "b": "a b", "c": "c d", "alone": None, "by itself": None}.items():
        save_checkpoint(tmp_path / name, group)
    of = {name: origin(tmp_path / name) for name in ("a", "b", "c", "alone", "by itself", "new", "also new")}
    assert of["a"] == of["b"]
    assert of["new"] == of["also new"]
    assert len(set(of.values())) == 5


def test_a_group_that_others_brought_to_different_steps_is_trained_in_parts(tmp_path):
    """By an orphan of an earlier driver, say, which saved a checkpoint after they had come."""
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    save_checkpoint(folders[0])
    assert train(*folders) == [str(folders[0])]
    assert train(*folders[1:]) == [str(folder) for folder in folders[1:]]
    assert (folders[0] / GROUP_FILE).read_text() == str(folders[0])
    assert (
        (folders[1] / GROUP_FILE).read_text()
        == (folders[2] / GROUP_FILE).read_text()
        == "\n".join(map(str, folders[1:]))
    )
    assert "trial.yaml" in log_tail(folders[1])
    assert arguments(folders[1:])[0] == "fit-shared"


def test_a_runner_that_was_stopped_begins_nothing(tmp_path):
    runner = Runner()
    runner.stop()
    assert runner.train([str(tmp_path)], str(PROJECT), 1.0) == []
    assert not (tmp_path / "log.txt").exists()


def test_ray_that_does_not_start_here_is_not_looked_for_at_an_address(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("too-long-for-a-socket" * 8)))
    with pytest.raises(UserError, match="Ray does not start on this machine: ") as refusal, cluster(None):
        pass
    assert "no Ray cluster answers" not in str(refusal.value)


def test_room_is_for_what_the_machines_have_whatever_else_they_run(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.init(address="local", num_cpus=3, num_gpus=1, include_dashboard=False, object_store_memory=100 * 2**20)
    try:
        assert placement_group([{"CPU": 3}]).wait(30)
        rooms = {demand: room_for(Resources(*demand)) for demand in [(1, 0), (2, 0), (0.1, 0), (1, 1), (0.1, 0.2)]}
        assert rooms == {(1, 0): 3, (2, 0): 1, (0.1, 0): 30, (1, 1): 1, (0.1, 0.2): 5}
        with pytest.raises(UserError, match="the largest of the cluster's 1 has 3 and 1"):
            room_for(Resources(4, 0))
        assert room_for(Resources(4, 0, autoscaling=True)) == 1
    finally:
        ray.shutdown()
