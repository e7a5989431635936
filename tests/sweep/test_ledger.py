"""What a sweep knows of its trials is on disk, and read again by whoever goes on with it."""

import json

import pytest

from c2c_lightning.sweep.ledger import Ledger, read_progress


def row(step: int, score: float) -> str:
    return json.dumps({"time": 1.0, "step": step, "max_steps": 300, "metrics": {"m": score}, "gates": []}) + "\n"


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.begin(0, {"model.layers": [0, 1]}, {"model": {"layers": [0, 1]}})
    ledger.begin(1, {"model.layers": "all"}, {"model": {"layers": "all"}})
    return ledger


def test_a_ledger_that_is_read_again_knows_what_was_noted(ledger, tmp_path):
    (tmp_path / "trials/000/progress.jsonl").write_text(row(100, 0.5))
    ledger.note(0, "running")
    ledger.note(0, "stopped", "it was weak")
    again = Ledger(tmp_path).refresh()
    assert [trial.number for trial in again] == [0, 1]
    assert (again[0].state, again[0].reason, again[0].values) == ("stopped", "it was weak", {"model.layers": [0, 1]})
    assert (again[0].step, again[0].score("m")) == (100, 0.5)
    assert again[0].starts[0] <= again[0].ended
    assert again[1].progress == []


def test_what_was_running_when_the_driver_died_waits_to_be_resumed(ledger, tmp_path):
    ledger.note(1, "running")
    assert Ledger(tmp_path).trials[1].state == "waiting"


def test_a_trial_is_begun_once(ledger, tmp_path):
    ledger.note(0, "finished")
    again = Ledger(tmp_path)
    assert again.begin(0, {"model.layers": [0, 1]}, {}).state == "finished"
    assert "layers" in (tmp_path / "trials/000/trial.yaml").read_text()


def test_values_are_read_again_as_what_they_were(tmp_path):
    values = {"model.layer_map": {0: 0, 3: 5}, "model.optimizer.lr": 1e-5, "model.layers": [0], "k": "1", "n": None}
    Ledger(tmp_path).begin(0, values, {"model": {"layer_map": {0: 0, 3: 5}}})
    again = Ledger(tmp_path)
    assert again.trials[0].values == values
    assert again.config(0) == {"model": {"layer_map": {0: 0, 3: 5}}}


def test_what_a_trial_reports_after_it_was_stopped_does_not_count(ledger, tmp_path):
    file = tmp_path / "trials/000/progress.jsonl"
    file.write_text(row(100, 0.5) + row(150, 0.6))
    assert ledger.note(0, "stopped", "weak", stopped_at=100).score("m") == 0.5
    file.write_text(row(100, 0.5) + row(150, 0.6) + row(200, 0.7))
    for known in (ledger, Ledger(tmp_path)):
        (trial, _) = known.refresh()
        assert (trial.step, trial.score("m")) == (100, 0.5)


def test_every_start_is_kept(ledger, tmp_path):
    ledger.note(0, "running")
    ledger.note(0, "waiting")
    again = Ledger(tmp_path)
    again.note(0, "running")
    starts = Ledger(tmp_path).trials[0].starts
    assert len(starts) == 2
    assert starts == sorted(starts)


def test_of_a_step_that_was_done_again_the_later_row_counts(tmp_path):
    (tmp_path / "progress.jsonl").write_text(row(50, 0.1) + row(100, 0.2) + row(100, 0.3) + row(150, 0.4))
    assert [(each["step"], each["metrics"]["m"]) for each in read_progress(tmp_path)] == [
        (50, 0.1),
        (100, 0.3),
        (150, 0.4),
    ]


def test_a_row_that_is_being_written_is_not_read_yet(tmp_path):
    (tmp_path / "progress.jsonl").write_text(row(50, 0.1) + row(100, 0.2)[:-20])
    assert [each["step"] for each in read_progress(tmp_path)] == [50]
