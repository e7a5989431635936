"""What a sweep leaves: its table and its best configuration."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import yaml

from c2c_lightning.cli import fit as fit_cli
from c2c_lightning.sweep.configuration import merge
from c2c_lightning.sweep.results import ranking, write_best, write_csv
from tests.sweep.invented import METRIC, nano_sweep, trial

PROJECT = Path(__file__).parents[2]


def best(*trials, mode="max"):
    ranked = ranking(trials, METRIC, mode)
    return ranked[0].number if ranked else None


def test_the_best_finished_trial_wins():
    assert best(trial(0, 0.5), trial(1, 0.9), trial(2, 0.7)) == 1
    assert best(trial(0, 0.5), trial(1, 0.9), trial(2, 0.7), mode="min") == 0


def test_a_stopped_trial_counts_only_if_none_finished():
    assert best(trial(0, 0.9, state="stopped"), trial(1, 0.5)) == 1
    assert best(trial(0, 0.8, state="stopped"), trial(1, 0.9, state="stopped")) == 1


def test_of_equals_the_one_with_fewer_open_layers_wins_then_the_lower_number():
    assert best(trial(0, 0.9, num_open=5), trial(2, 0.9, num_open=3), trial(1, 0.9, num_open=3)) == 1


def test_a_trial_without_a_score_is_never_best():
    nothing = [trial(0, None), trial(1, math.nan), trial(2, state="waiting"), trial(3, math.inf)]
    assert best(*nothing, trial(4, 0.1)) == 4
    assert best(*nothing, trial(4, 0.1), mode="min") == 4
    assert best(*nothing) is None
    assert best(trial(0, 0.9, state="failed"), trial(1, 0.8, state="running")) is None


def test_the_csv_has_every_trial_and_all_that_is_known_of_it(tmp_path):
    trials = [*nano_sweep(), trial(12, state="waiting", values={"model.layers": "all"})]
    table = pd.read_csv(write_csv(trials, tmp_path))
    assert list(table["trial"]) == list(range(13))
    for one, row in zip(trials, table.to_dict("records")):
        assert yaml.safe_load(str(row["model.layers"])) == one.values["model.layers"]
        assert row["state"] == one.state
        assert row["step"] == one.step
        assert row["folder"] == str(one.folder)
    first = table.iloc[0]
    assert first[METRIC] == pytest.approx(trials[0].score(METRIC))
    assert first["val/loss"] == pytest.approx(trials[0].score("val/loss"))
    assert first["open_layers"] == trials[0].num_open
    assert first["seconds"] == pytest.approx(60)
    assert first["run_id"] == "0" * 32
    assert first["model.optimizer.gate_lr"] == pytest.approx(trials[0].values["model.optimizer.gate_lr"])


class Parsed(fit_cli.C2CCLI):
    """The command line as far as it needs no models."""

    def instantiate_classes(self) -> None:
        pass


@pytest.fixture
def parse(monkeypatch):
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr("sys.argv", ["c2c_lightning"])
    return lambda *files: Parsed(
        **fit_cli.WIRING, run=False, args=[f"--config={file}" for file in files]
    ).config.as_dict()


VALUES = {
    "model.layers": [0, 3],
    "model.gate": {"kind": "open"},
    "model.optimizer.lr": 1e-5,
    "model.fuser": {"class_path": "c2c_lightning.fuser.C2CFuser", "init_args": {"hidden": 64, "dropout": 0.2}},
    "model.layer_map": {"0": 1, "3": 5},
}


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """A trial of the built-in pair that has ended."""
    monkeypatch.chdir(PROJECT)
    base = tmp_path / "mine.yaml"
    base.write_text("model: {optimizer: {gate_lr: '${model.optimizer.lr}'}}\n")
    config = merge(["conf/base.yaml", str(base)], {"trainer.max_steps": 50}, VALUES)
    made = trial(7, 0.967, step=50, values=VALUES)
    made.folder = tmp_path / "sweep" / "trials" / "007"
    made.folder.mkdir(parents=True)
    (made.folder / "trial.yaml").write_text(yaml.safe_dump(config))
    return made


def test_the_best_configuration_is_short_and_says_where_it_is_from(swept, tmp_path):
    text = write_best(swept, METRIC, tmp_path / "sweep").read_text()
    first, *_ = text.splitlines()
    assert first == f"# The best of sweep sweep: trial 007, {METRIC} 96.7% at step 50."
    written = yaml.safe_load(text)
    base = yaml.safe_load((PROJECT / "conf" / "base.yaml").read_text())
    assert written["model"]["receiver"] == base["model"]["receiver"]
    assert written["model"]["gate"] == {**base["model"]["gate"], "kind": "open"}
    assert written["model"]["layers"] == [0, 3]
    assert written["model"]["optimizer"]["gate_lr"] == "${model.optimizer.lr}"
    assert written["trainer"] == {**base["trainer"], "max_steps": 50}
    assert written["data"] == base["data"], "no defaults"


def test_fit_reads_the_best_configuration_as_it_would_read_base_and_values_one_over_the_other(swept, tmp_path, parse):
    file = write_best(swept, METRIC, tmp_path / "sweep")
    nested = {"trainer": {"max_steps": 50}, "model": {}}
    for key, value in VALUES.items():
        *way, last = key.split(".")
        inner = nested
        for part in way:
            inner = inner.setdefault(part, {})
        inner[last] = value
    over = tmp_path / "over.yaml"
    over.write_text(json.dumps(nested))
    best = parse(file)
    others = parse("conf/base.yaml", tmp_path / "mine.yaml", over)
    for config in (best, others):
        config.pop("config", None)
    assert best == others
    assert best["model"]["optimizer"]["gate_lr"] == 1e-5, "what depends on a sampled value follows it"
