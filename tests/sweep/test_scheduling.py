"""Which trials run when, which share a process, and what becomes of them when that ends, however it does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
import yaml
from ray.exceptions import ActorDiedError

from c2c_lightning.errors import UserError
from c2c_lightning.sweep.live_table import LiveTable
from c2c_lightning.sweep.process import add_to_log, log_tail
from c2c_lightning.sweep.scheduling import MOST_LOST, Scheduler
from c2c_lightning.sweep.settings import Asha, Sweep
from c2c_lightning.sweep.tracking import tracked
from c2c_lightning.sweep.trials import Trial, Trials

METRIC = "val/loss"


class Job:
    """A job that does what a test says, in the place of a process on some machine."""

    def __init__(self, trials: Sequence[Trial]):
        self.trials, self.stopped = list(trials), False
        self.begun: Future[None] = Future()
        self.ended: Future[list[str]] = Future()
        self.begun.set_result(None)

    @property
    def numbers(self) -> list[int]:
        return [trial.number for trial in self.trials]

    def report(self, step: int, score: float | None, metric: str = METRIC, trial: int = 0) -> None:
        row = {"time": 1.0, "step": step, "max_steps": 300, "metrics": {metric: score}, "gates": []}
        with (self.trials[trial].folder / "progress.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def finish(self, *scores: float | None) -> None:
        for place, score in enumerate(scores):
            self.report(300, score, trial=place)
            (self.trials[place].folder / "summary.json").write_text("{}")
        self.end()

    def crash(self, said: str) -> None:
        for trial in self.trials:
            add_to_log(trial.folder, said)
        self.end()

    def end(self) -> None:
        self.ended.set_result([str(trial.folder.resolve()) for trial in self.trials])

    def lose(self) -> None:
        self.ended.set_exception(ActorDiedError())

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        pass


class Swept:
    """A sweep whose jobs a test has in hand."""

    def __init__(self, folder: Path, tracker, processes: int = 1, **settings):
        base = folder / "base.yaml"
        base.write_text("trainer: {max_steps: 300}\n")
        settings = {"space": {"model.gate.init": {"grid": [0, 1, 2]}}, "metric": METRIC, "mode": "min", **settings}
        self.sweep = Sweep(base=str(base), search="grid", trials=3, **settings)
        self.trials = Trials(folder, self.sweep)
        self.trials.resume()
        self.jobs: list[Job] = []
        table = LiveTable(METRIC, "min")
        self.scheduler = Scheduler(self.trials, tracker, table, processes)
        self.scheduler.start = self.start

    def start(self, trials: Sequence[Trial]) -> Job:
        self.jobs.append(Job(trials))
        return self.jobs[-1]

    def step(self) -> bool:
        return self.scheduler.step()

    @property
    def states(self) -> list[str]:
        return [trial.state for trial in self.trials.refresh()]

    def reason(self, number: int) -> str:
        return self.trials.known[number].reason


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    """One store for all tests here; making a database takes seconds."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with tracked(folder, Sweep(space={"x": {"choice": [1]}})) as tracker:
            yield tracker


@pytest.fixture
def swept(tmp_path, tracker):
    return lambda **settings: Swept(tmp_path, tracker, **settings)


def test_so_many_trials_run_at_once_and_all_run_to_the_end(swept):
    sweep = swept(processes=2)
    assert sweep.step()
    assert sweep.states == ["running", "running"]
    sweep.jobs[0].finish(0.5)
    sweep.step()
    sweep.step()
    assert sweep.states == ["finished", "running", "running"]
    for job in sweep.jobs[1:]:
        job.finish(0.4)
    assert not sweep.step()
    assert sweep.states == ["finished"] * 3


def test_a_trial_that_waits_for_a_machine_does_not_run_yet(swept):
    sweep = swept()
    sweep.start = None
    sweep.scheduler.fill()
    sweep.jobs[0].begun = Future()
    sweep.step()
    assert sweep.states == ["waiting"]
    sweep.jobs[0].begun.set_result(None)
    sweep.step()
    assert sweep.states == ["running"]


def test_a_trial_that_crashes_is_begun_again_as_often_as_the_sweep_says_and_then_fails_alone(swept):
    sweep = swept(retries=1)
    sweep.step()
    sweep.jobs[0].crash("RuntimeError: the disk is on fire")
    sweep.step()
    assert sweep.reason(0) == "begun again (1 of 1): RuntimeError: the disk is on fire"
    sweep.step()
    assert sweep.jobs[1].numbers == [0]
    sweep.jobs[1].crash("RuntimeError: the disk is on fire")
    sweep.step()
    assert (sweep.states, sweep.reason(0)) == (["failed"], "RuntimeError: the disk is on fire")
    assert sweep.step(), "the others go on"
    assert sweep.jobs[2].numbers == [1]


def test_a_trial_that_was_refused_fails_at_once(swept):
    sweep = swept()
    sweep.step()
    sweep.jobs[0].crash("error: the loss at step 3 is not finite")
    sweep.step()
    assert (sweep.states, sweep.reason(0)) == (["failed"], "the loss at step 3 is not finite")


def test_what_goes_wrong_in_a_runner_is_in_the_trials_log(swept):
    sweep = swept(retries=0)
    sweep.step()
    sweep.jobs[0].ended.set_exception(FileNotFoundError("nowhere"))
    sweep.step()
    assert sweep.states == ["failed"]
    assert "FileNotFoundError: nowhere" in log_tail(sweep.trials.known[0].folder)


def test_a_machine_that_is_lost_costs_no_retry_but_not_for_ever(swept):
    sweep = swept(retries=0)
    for _ in range(MOST_LOST):
        sweep.step()
        sweep.jobs[-1].lose()
        sweep.step()
        assert sweep.states == ["waiting"]
    sweep.step()
    sweep.jobs[-1].lose()
    sweep.step()
    assert sweep.states == ["failed"]
    assert "its machine was lost" in sweep.reason(0)


def test_a_trial_that_finished_on_a_machine_that_was_lost_then_has_finished(swept):
    sweep = swept()
    sweep.step()
    sweep.jobs[0].report(300, 0.5)
    (sweep.jobs[0].trials[0].folder / "summary.json").write_text("{}")
    sweep.jobs[0].lose()
    sweep.step()
    assert sweep.states == ["finished"]


def test_a_weak_trial_is_stopped_by_the_validation_at_which_it_is_weak(swept):
    sweep = swept(asha=Asha(grace=0.25, factor=2))
    sweep.step()
    sweep.jobs[0].report(100, 0.5)
    sweep.jobs[0].finish(0.5)
    sweep.step()
    sweep.step()
    sweep.jobs[1].report(50, 0.9)
    sweep.step()
    assert sweep.states == ["finished", "running"]
    sweep.jobs[1].report(100, None)
    sweep.jobs[1].report(200, 0.9)
    sweep.step()
    assert sweep.states == ["finished", "stopped"]
    assert (sweep.trials.known[1].step, sweep.trials.known[1].stopped_at) == (100, 100)
    assert sweep.reason(1) == "at step 100, nan was not among the best 1/2"
    assert sweep.jobs[1].stopped
    sweep.step()
    assert len(sweep.jobs) == 2, "until it has saved and ended"
    sweep.jobs[1].end()
    sweep.step()
    sweep.step()
    assert sweep.jobs[2].numbers == [2]


def test_a_metric_that_is_not_reported_ends_the_sweep_with_those_that_are(swept):
    sweep = swept()
    sweep.step()
    sweep.jobs[0].report(5, 0.5, "val/los")
    with pytest.raises(UserError, match=r"trial 0: .*did not report\. Did you mean val/los\? It reported val/los"):
        sweep.step()
    assert sweep.states == ["failed"]


def test_a_trial_that_never_validated_ends_the_sweep_with_the_remedy(swept):
    sweep = swept()
    sweep.step()
    (sweep.jobs[0].trials[0].folder / "summary.json").write_text("{}")
    sweep.jobs[0].end()
    with pytest.raises(UserError, match=r"trial 0: .*never validated, so there is no val/loss .*val_check_interval"):
        sweep.step()


def test_what_has_not_ended_when_the_sweep_does_waits(swept):
    sweep = swept(processes=2)
    sweep.step()
    for job in sweep.jobs:
        job.end()
    sweep.scheduler.end()
    assert [job.stopped for job in sweep.jobs] == [True, True]
    assert sweep.states == ["waiting", "waiting"]


SHARED = {"engine": "shared", "together": 2}


def test_trials_that_may_share_a_process_do_and_the_others_wait(swept):
    space = {"seed_everything": {"grid": [1, 2]}, "model.gate.init": {"grid": [0, 1]}}
    sweep = swept(space=space, processes=1, **{**SHARED, "together": 4})
    sweep.trials.sweep.trials = 4
    sweep.step()
    assert sweep.jobs[0].numbers == [0, 1], "with one seed"
    sweep.jobs[0].finish(0.5, 0.6)
    sweep.step()
    sweep.step()
    assert sweep.jobs[1].numbers == [2, 3]


def test_trials_of_a_group_that_crashed_run_alone_and_are_charged_only_there(swept):
    sweep = swept(retries=0, **SHARED)
    sweep.step()
    assert sweep.jobs[0].numbers == [0, 1]
    sweep.jobs[0].crash("RuntimeError: on fire")
    sweep.step()
    assert sweep.states == ["waiting", "waiting"]
    sweep.step()
    assert sweep.jobs[1].numbers == [0]
    sweep.jobs[1].crash("RuntimeError: on fire")
    sweep.step()
    sweep.step()
    assert sweep.jobs[2].numbers == [1]
    sweep.jobs[2].finish(0.5)
    sweep.step()
    assert sweep.states[:2] == ["failed", "finished"]


def test_of_a_group_one_is_stopped_by_word_in_its_folder_and_the_others_go_on(swept):
    sweep = swept(asha=Asha(grace=0.25, factor=2), **SHARED)
    sweep.step()
    sweep.jobs[0].report(100, 0.5, trial=0)
    sweep.jobs[0].report(100, 0.9, trial=1)
    sweep.step()
    assert sweep.states[:2] == ["running", "stopped"]
    assert (sweep.jobs[0].trials[1].folder / "stop").exists()
    assert not sweep.jobs[0].stopped


def test_who_was_left_out_of_a_groups_process_waits_for_another(swept):
    sweep = swept(retries=0, **SHARED)
    sweep.step()
    first, _ = sweep.jobs[0].trials
    sweep.jobs[0].report(300, 0.5)
    (first.folder / "summary.json").write_text("{}")
    sweep.jobs[0].ended.set_result([str(first.folder.resolve())])
    sweep.step()
    assert sweep.states[:2] == ["finished", "waiting"]
    sweep.step()
    assert 1 in sweep.jobs[1].numbers


def test_a_damaged_row_ends_the_sweep_in_one_message(swept):
    sweep = swept()
    sweep.step()
    (sweep.jobs[0].trials[0].folder / "progress.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"progress\.jsonl, line 1 is damaged"):
        sweep.step()


def test_a_trial_that_is_resumed_goes_on_with_its_own_configuration(swept, tmp_path):
    sweep = swept()
    sweep.step()
    config = yaml.safe_load((tmp_path / "trials/000/trial.yaml").read_text())
    assert config == {"trainer": {"max_steps": 300}, "model": {"gate": {"init": 0}}}
