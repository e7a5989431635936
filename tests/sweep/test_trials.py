"""A sweep's trials stand in its study: what is asked next, what is read again, and what is damaged."""

import json
import math

import optuna
import pytest
import yaml

from c2c_lightning.errors import UserError
from c2c_lightning.sweep.settings import Asha, Sweep
from c2c_lightning.sweep.trials import JOURNAL, Trials, read_progress

METRIC = "m"
LAYERS = {"layers": {"choice": ["all", "last:2", [0, 3]]}, "init": {"uniform": [-1, 1]}}


def row(step: int, score: float | None, **other) -> str:
    row = {"time": 1.0, "step": step, "max_steps": 300, "metrics": {METRIC: score}, "gates": [], **other}
    return json.dumps(row) + "\n"


@pytest.fixture
def resume(tmp_path):
    """Takes a sweep up, as a driver does; what was a driver before is gone without a word."""
    (tmp_path / "base.yaml").write_text("trainer: {max_steps: 300}\n")

    def resumed(folder=tmp_path, space=LAYERS, trials=6, **settings) -> Trials:
        settings = {"search": "random", "metric": METRIC, "asha": Asha(), **settings}
        known = Trials(folder, Sweep(space=space, trials=trials, base=str(tmp_path / "base.yaml"), **settings))
        known.failed = known.resume()
        return known

    return resumed


def report(trial, *rows: tuple[int, float | None]) -> None:
    (trial.folder / "progress.jsonl").write_text("".join(row(*each) for each in rows))


def finish(trials: Trials, trial, score: float | None = 0.5) -> None:
    report(trial, (300, score))
    trials.note(trial, "finished")


def test_numbers_count_up_until_there_are_enough(resume):
    trials = resume(trials=3)
    assert [trials.next().number for _ in range(3)] == [0, 1, 2]
    assert trials.next() is None


def test_what_was_noted_is_read_again(resume):
    trials = resume()
    weak, running = trials.next(), trials.next()
    trials.note(weak, "running")
    report(weak, (100, 0.5))
    trials.note(weak, "stopped", "it was weak", 100)
    trials.note(running, "running")
    again = resume().refresh()
    assert [trial.number for trial in again] == [0, 1]
    assert (again[0].state, again[0].reason, again[0].values) == ("stopped", "it was weak", weak.values)
    assert (again[0].step, again[0].score(METRIC)) == (100, 0.5)
    assert again[0].starts[0] <= again[0].ended
    assert (again[1].state, again[1].progress) == ("waiting", []), "whoever ran it is gone"


def test_values_are_read_again_as_what_they_were(resume):
    space = {
        "map": {"choice": [{0: 0, 3: 5}]},
        "k": {"choice": ["1"]},
        "n": {"choice": [None]},
        "f": {"choice": [1e-5]},
    }
    trial = resume(space=space).next()
    (again,) = resume(space=space).refresh()
    assert again.values == trial.values == {"map": {0: 0, 3: 5}, "k": "1", "n": None, "f": 1e-5}
    assert again.config()["map"] == {0: 0, 3: 5}


def test_a_trial_that_is_resumed_is_what_it_was_whatever_has_become_of_the_base(resume, tmp_path):
    first = resume().next()
    (tmp_path / "base.yaml").write_text("trainer: {max_steps: 5}\n")
    again = resume().next()
    assert (again.number, again.values) == (0, first.values)
    assert again.config()["trainer"] == {"max_steps": 300}
    assert yaml.safe_load((tmp_path / "trials/000/trial.yaml").read_text()) == again.config()


def test_a_trial_that_was_cut_off_is_handed_out_again_with_its_values(resume):
    first = resume()
    begun = [first.next() for _ in range(3)]
    finish(first, begun[1])
    second = resume()
    assert second.left() == 5
    again = [second.next(), second.next()]
    assert [trial.values for trial in again] == [begun[0].values, begun[2].values]
    assert second.next().number == 3
    finish(second, again[0], 0.25)
    values = {trial.number: trial.value for trial in resume().study.trials}
    assert (values[0], values[1], values[2]) == (0.25, 0.5, None)


def test_a_trial_of_which_the_driver_was_killed_before_it_had_a_folder_gets_one(resume):
    trials = resume()
    trials.study.ask().suggest_float("init", -1, 1)
    again = resume()
    assert again.left() == 6
    assert again.next().folder.exists()


@pytest.mark.parametrize(("state", "told"), [("finished", "COMPLETE"), ("stopped", "PRUNED")])
def test_the_study_learns_of_an_end_that_the_driver_was_killed_before_telling(resume, state, told, monkeypatch):
    trials = resume(trials=1)
    trial = trials.next()
    report(trial, (200, 0.3), (300, 0.4))
    monkeypatch.setattr(trials, "_tell", lambda trial: None)  # the kill
    trials.note(trial, state, stopped_at=200 if state == "stopped" else None)
    again = resume(trials=1)
    assert again.left() == 0
    assert (again.study.trials[0].state.name, again.known[0].state) == (told, state)
    assert again.study.trials[0].value == (0.3 if state == "stopped" else 0.4)


def test_a_trial_that_failed_is_handed_out_once_more_when_the_sweep_is_resumed(resume):
    trials = resume(trials=2)
    failed, good = trials.next(), trials.next()
    trials.note(failed, "failed", "the disk is full")
    finish(trials, good)
    assert trials.next() is None, "not while the sweep goes on"

    again = resume(trials=2)
    (waiting,) = again.failed
    assert (waiting.state, waiting.reason) == ("waiting", "tried again; it had failed: the disk is full")
    assert again.next().values == failed.values
    finish(again, waiting, 0.7)
    assert again.next() is None
    assert [trial.value for trial in again.study.trials] == [0.7, 0.5], "it counts once"
    assert resume(trials=2).left() == 0


def test_what_became_of_a_trial_is_told_to_the_sampler(resume):
    trials = resume()
    finished, stopped, diverged = (trials.next() for _ in range(3))
    finish(trials, finished, 0.9)
    report(stopped, (50, 0.1), (100, 0.2), (150, 0.3))
    trials.note(stopped, "stopped", stopped_at=100)
    finish(trials, diverged, None)
    told = trials.study.trials
    assert [trial.state.name for trial in told[:3]] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert trials.study.best_value == 0.9
    assert told[1].intermediate_values == {100: 0.2}
    assert math.isnan(told[2].intermediate_values[300])
    assert [resume().known[n].state for n in range(3)] == ["finished", "stopped", "finished"]


def test_what_a_trial_reports_after_it_was_stopped_does_not_count(resume):
    trials = resume()
    trial = trials.next()
    report(trial, (100, 0.5), (150, 0.6))
    assert trials.note(trial, "stopped", "weak", 100).score(METRIC) == 0.5
    report(trial, (100, 0.5), (150, 0.6), (200, 0.7))
    assert resume().refresh()[0].step == 100


def test_every_start_is_kept(resume):
    trial = resume().next()
    for _ in range(2):
        again = resume()
        again.note(again.known[trial.number], "running")
    starts = resume().known[0].starts
    assert len(starts) == 2
    assert starts == sorted(starts)


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_sweep_that_is_resumed_tries_other_points(resume, kind):
    tried = []
    for _ in range(3):
        trials = resume(search=kind, trials=9)
        for _ in range(3):
            trial = trials.next()
            tried.append(trial.values["init"])
            finish(trials, trial)
    assert len(set(tried)) == 9


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_the_same_seed_asks_the_same(resume, tmp_path, kind):
    asked = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        trials = resume(tmp_path / name, search=kind, seed=3)
        asked.append([trials.next().values for _ in range(5)])
    assert asked[0] == asked[1]


def test_a_grid_is_tried_in_order_and_to_its_end_also_if_its_driver_was_killed_while_it_was_laid_out(resume):
    space = {"layers": {"grid": ["all", [0]]}, "init": {"grid": [0, 1]}}
    resume(space={"layers": {"grid": ["all"]}, "init": {"grid": [0]}}, trials=1, search="grid")
    trials = resume(space=space, trials=4, search="grid")
    with pytest.raises(UserError, match="has parameters that"):
        _ = [trials.next() for _ in range(4)] and resume(space={"layers": {"grid": [[9]]}}, trials=4, search="grid")
    tried = [trial.values for trial in trials.refresh()]
    assert tried == [{"layers": layers, "init": init} for layers in ("all", [0]) for init in (0, 1)]
    assert trials.next() is None


def test_points_to_try_first_come_first_and_only_once(resume):
    first = [{"layers": "last:2", "init": 0.5}, {"layers": [0, 3]}]
    trials = resume(first=first)
    begun = [trials.next().values for _ in range(2)]
    assert begun[0] == first[0]
    assert begun[1]["layers"] == [0, 3]
    assert len(resume(first=first).study.trials) == 2


def test_tpe_finds_the_layer_that_counts(resume):
    trials = resume(space={"open": {"layers": list(range(6))}}, trials=40, search="tpe")
    suggested = []
    for _ in range(40):
        trial = trials.next()
        suggested.append(trial.values["open"])
        finish(trials, trial, (4 in suggested[-1]) - 0.05 * len(suggested[-1]))
    later = suggested[20:]
    assert sum(4 in layers for layers in later) >= 16
    assert sum(len(layers) for layers in later) / 20 < 3


def test_of_a_step_that_was_done_again_the_later_row_counts_and_half_a_row_is_not_read_yet(tmp_path):
    (tmp_path / "progress.jsonl").write_text(row(50, 0.1) + row(100, 0.2) + row(100, 0.3) + row(150, 0.4)[:-20])
    assert [(each["step"], each["metrics"][METRIC]) for each in read_progress(tmp_path)] == [(50, 0.1), (100, 0.3)]


def test_a_journal_whose_last_line_was_cut_off_is_mended(resume, tmp_path):
    trials = resume(trials=2)
    finish(trials, trials.next())
    trials.note(trials.next(), "running")
    journal = tmp_path / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-15])
    again = resume(trials=2)
    assert again.left() == 1, "only the last note is lost"
    finish(again, again.next())
    assert [trial.state for trial in resume(trials=2).refresh()] == ["finished", "finished"]


DAMAGED = {
    "journal binary": (JOURNAL, b"\xf0\x28\n\x00\n", r"the study .*optuna\.journal, line 1 is damaged"),
    "journal garbage": (JOURNAL, b"garbage\n", r"the study .*optuna\.journal, line 1 is damaged"),
    "journal of lists": (JOURNAL, b"[1]\n", r"the study .*line 1 is damaged"),
    "journal of nothing": (JOURNAL, b'{"op_code": 4, "worker_id": "x"}\n', r"the study .*Optuna cannot read it"),
    "unknown operation": (JOURNAL, b'{"op_code": 99, "worker_id": "x"}\n', r"the study .*Optuna cannot read it"),
    "progress binary": (
        "trials/000/progress.jsonl",
        b"\xff\xfe\n",
        r"the progress .*progress\.jsonl, line 1 is damaged",
    ),
    "progress keys": ("trials/000/progress.jsonl", b'{"time": 1.0}\n', r"line 1 is damaged: step: Field required"),
    "progress zero": ("trials/000/progress.jsonl", row(1, 0.1, max_steps=0).encode(), r"max_steps: .*greater than 0"),
    "configuration missing": ("trials/000/trial.yaml", None, r"the configuration .*trial\.yaml cannot be read"),
    "configuration list": ("trials/000/trial.yaml", b"[1]\n", r"trial\.yaml is damaged"),
    "configuration binary": ("trials/000/trial.yaml", b"\x80\x81", r"trial\.yaml is no YAML"),
    "base binary": ("base.yaml", b"a: \xd0\x28", r"the base .*base\.yaml is no YAML"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_named_and_left_as_it_is(resume, tmp_path, name):
    file, content, message = DAMAGED[name]
    trials = resume()
    finish(trials, trials.next())
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        resume().next()
    assert content is None or (tmp_path / file).read_bytes() == content


@pytest.mark.parametrize("status", [[], {"state": "asleep"}, {"state": "failed"}])
def test_a_status_that_is_none_is_named_with_its_trial(resume, status):
    trials = resume()
    trials._asked(trials.next().number).set_user_attr("status", status)
    with pytest.raises(UserError, match=r"the study .*trial 0 is damaged"):
        resume()


def test_a_stranger_among_the_trials_folders_is_left_alone(resume, tmp_path):
    resume().next()
    (tmp_path / "trials" / "abc").mkdir()
    assert list(resume().known) == [0]


def test_a_sweep_of_an_earlier_version_is_refused_with_what_to_do(resume, tmp_path):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL)))
    optuna.create_study(storage=storage, study_name="sweep").ask()
    with pytest.raises(UserError, match=r"begun by another version.*sweep --config .*sweep\.yaml"):
        resume()
