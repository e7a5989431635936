"""A trial of a process of its own: what it does with what it finds in its folder."""

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from c2c_lightning.models.loading import PROJECT
from c2c_lightning.sweep.process import held, log_tail
from c2c_lightning.sweep.process_trial import GROUP_FILE, ProcessTrial
from tests.sweep.sweeps import wait_for

ROW = {"time": 0.0, "step": 5, "max_steps": 10, "metrics": {"val/loss": 0.5}, "gates": []}


def trial(folder: Path) -> ProcessTrial:
    config = {"folder": str(folder), "metric": "val/loss", "working_folder": str(PROJECT), "cpus": 1.0}
    return ProcessTrial(config)


@contextmanager
def at_work(folder: Path, last: Callable[[], None]):
    """Somebody has the folder, and does one last thing before giving it up to who waits for it."""
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


def save_checkpoint(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "config.yaml").touch()
    (folder / "progress.jsonl").write_text(json.dumps(ROW) + "\n")


def test_a_trial_whose_orphan_still_runs_goes_on_from_what_that_saves_last(tmp_path):
    with at_work(tmp_path, lambda: save_checkpoint(tmp_path)):
        begun = trial(tmp_path)
    begun.stop()
    assert begun.process.process.args[-2:] == ["--ckpt_path", str(tmp_path)]
    assert (tmp_path / "config.yaml").exists()


def test_a_trial_that_its_orphan_ends_is_not_begun_again(tmp_path):
    def end() -> None:
        save_checkpoint(tmp_path)
        (tmp_path / "summary.json").write_text("{}")

    with at_work(tmp_path, end):
        begun = trial(tmp_path)
    assert begun.process is None
    assert begun.step() == {"val/loss": 0.5, "step": 5, "percent": 50, "finished": True, "done": True}


def test_what_a_start_left_that_came_to_no_checkpoint_is_cleared(tmp_path):
    with at_work(tmp_path, (tmp_path / "config.yaml").touch):
        begun = trial(tmp_path)
    begun.stop()
    assert "--ckpt_path" not in begun.process.process.args
    assert not (tmp_path / "config.yaml").exists()


def test_a_trial_that_goes_on_by_itself_is_of_no_group_any_more(tmp_path):
    save_checkpoint(tmp_path)
    (tmp_path / GROUP_FILE).write_text("others")
    trial(tmp_path).stop()
    assert not (tmp_path / GROUP_FILE).exists()


@pytest.mark.parametrize("rows", [[], [{**ROW, "metrics": {"val/accuracy": 1.0}}]])
def test_a_trial_that_ends_without_the_metric_says_what_it_knows_and_is_done(tmp_path, rows):
    (tmp_path / "progress.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "summary.json").write_text("{}")
    last = trial(tmp_path).step()
    assert last["done"]
    assert last["known_metrics"] == [name for row in rows for name in row["metrics"]]
