"""A kill between two writes costs no trial: study and ledger come to say the same when a sweep is resumed."""

import json
import math
from pathlib import Path

import pytest
from optuna.trial import TrialState

from c2c_lightning.sweep.ledger import ENDED, Ledger
from c2c_lightning.sweep.reconcile import reconcile
from c2c_lightning.sweep.search import StudySearch, open_study
from c2c_lightning.sweep.settings import Asha, Sweep
from c2c_lightning.sweep.space import Space

METRIC = "m"
SWEEP = Sweep(space={"x": {"uniform": [0, 1]}}, search="random", metric=METRIC, trials=1, asha=Asha())
FINISHED = {METRIC: 0.9, "step": 300, "finished": True}
STOPPED = {METRIC: 0.2, "step": 100, "finished": False}


class Driver:
    """What one driver knows of a sweep of one trial."""

    def __init__(self, folder: Path):
        self.ledger, space = Ledger(folder), Space(SWEEP.space)
        self.study = open_study(folder, SWEEP, space)
        self.changed = reconcile(self.study, self.ledger, SWEEP)

        def prepare(number, values):
            self.ledger.begin(number, values, {})
            return {"number": number}

        self.search = StudySearch(self.study, space, 1, prepare, METRIC, "max")

    def start(self) -> None:
        assert self.search.suggest("t") == {"number": 0}
        self.ledger.note(0, "running")

    def train(self, *rows: tuple[int, float | None]) -> None:
        """What the trial reports, to its folder and to the search."""
        with (self.ledger.trials[0].folder / "progress.jsonl").open("a") as file:
            for step, score in rows:
                row = {"time": 1.0, "step": step, "max_steps": 300, "metrics": {METRIC: score}, "gates": []}
                file.write(json.dumps(row) + "\n")

    @property
    def left(self) -> int:
        """As run_sweep counts it."""
        return self.search.left() + sum(trial.state not in ENDED for trial in self.ledger.trials.values())


@pytest.fixture
def killed(tmp_path):
    driver = Driver(tmp_path)
    driver.start()
    driver.train((100, 0.2), (200, 0.3))
    return driver


def test_a_trial_that_finished_in_the_study_has_finished(killed, tmp_path):
    killed.train((300, 0.9))
    killed.search.on_trial_complete("t", FINISHED)
    resumed = Driver(tmp_path)
    (trial,) = resumed.changed
    assert (trial.state, trial.score(METRIC), resumed.left) == ("finished", 0.9, 0)
    assert not Driver(tmp_path).changed, "once"


def test_a_trial_that_was_stopped_in_the_study_was_stopped_there(killed, tmp_path):
    killed.search.on_trial_complete("t", STOPPED)
    resumed = Driver(tmp_path)
    (trial,) = resumed.changed
    assert (trial.state, trial.step, trial.score(METRIC), resumed.left) == ("stopped", 100, 0.2, 0)
    assert trial.reason == "at step 100, 0.2 was not among the best 1/2"


def test_a_trial_that_finished_without_a_score_has_finished(killed, tmp_path):
    killed.train((300, None))
    (killed.ledger.trials[0].folder / "summary.json").write_text("{}")
    killed.search.on_trial_complete("t", {**FINISHED, METRIC: math.nan})
    resumed = Driver(tmp_path)
    assert ([trial.state for trial in resumed.changed], resumed.left) == (["finished"], 0)


def test_a_trial_that_was_given_up_in_the_study_has_failed(killed, tmp_path):
    killed.study.tell(0, state=TrialState.FAIL)
    resumed = Driver(tmp_path)
    assert ([trial.state for trial in resumed.changed], resumed.left) == (["failed"], 0)


@pytest.mark.parametrize(("state", "told"), [("finished", "COMPLETE"), ("stopped", "PRUNED")])
def test_the_study_is_told_of_a_trial_that_has_ended_in_the_ledger(killed, tmp_path, state, told):
    killed.ledger.note(0, state, stopped_at=200 if state == "stopped" else None)
    resumed = Driver(tmp_path)
    assert resumed.left == 0
    assert resumed.study.trials[0].state.name == told
    assert resumed.study.trials[0].value == 0.3
    assert resumed.ledger.trials[0].state == state


def test_a_trial_that_failed_waits_to_be_tried_again(killed, tmp_path):
    killed.search.on_trial_complete("t", error=True)
    killed.ledger.note(0, "failed", "the disk is full")
    resumed = Driver(tmp_path)
    (trial,) = resumed.changed
    assert (trial.state, trial.reason) == ("waiting", "tried again; it had failed: the disk is full")
    assert resumed.search.left() == 1
    resumed.start()
    resumed.search.on_trial_complete("t", FINISHED)
    resumed.ledger.note(0, "finished")
    assert Driver(tmp_path).left == 0


def test_a_trial_that_was_cut_off_is_left_as_it_is(killed, tmp_path):
    resumed = Driver(tmp_path)
    assert not resumed.changed
    assert resumed.ledger.trials[0].state == "waiting"
    assert resumed.search.left() == 1
