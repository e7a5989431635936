"""What the driver makes of trials before they begin, of what Tune tells of them, and of signals."""

import signal
from types import SimpleNamespace

import pytest
import yaml

from c2c_lightning.errors import UserError
from c2c_lightning.runs import Interrupted
from c2c_lightning.sweep.driver import interruptible, postponed, searcher, terminated
from c2c_lightning.sweep.ledger import Ledger
from c2c_lightning.sweep.live_table import LiveTable
from c2c_lightning.sweep.search import open_study
from c2c_lightning.sweep.settings import Asha, Sweep
from c2c_lightning.sweep.space import Space
from c2c_lightning.sweep.tracking import tracked
from c2c_lightning.sweep.watch import Watch

METRIC = "val/loss"


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "base.yaml").write_text("trainer: {max_steps: 300}\n")
    return Sweep(
        space={"model.layer_map": {"choice": [{0: 0, 1: 1}]}},
        base="base.yaml",
        search="random",
        trials=1,
        metric=METRIC,
        mode="min",
        asha=Asha(),
    )


@pytest.fixture
def tracker(sweep, tmp_path):
    with tracked(tmp_path, sweep) as tracker:
        yield tracker


def suggest(sweep, tracker, folder) -> tuple[Ledger, dict]:
    """What a driver that has just begun makes of the first trial."""
    ledger, space = Ledger(folder), Space(sweep.space)
    study = open_study(folder, sweep, space)
    return ledger, searcher(sweep, space, study, ledger, tracker, {}).suggest("t")


def test_a_trial_that_is_resumed_is_what_it_was_whatever_has_become_of_the_base(sweep, tracker, tmp_path):
    _, first = suggest(sweep, tracker, tmp_path)
    (tmp_path / "base.yaml").write_text("trainer: {max_steps: 5}\n")
    ledger, resumed = suggest(sweep, tracker, tmp_path)
    assert resumed == first, "with the same key, so that it can go on with whom it was trained"
    assert ledger.trials[0].values == {"model.layer_map": {0: 0, 1: 1}}
    assert yaml.safe_load((tmp_path / "trials/000/trial.yaml").read_text())["trainer"] == {"max_steps": 300}


@pytest.fixture
def watch(sweep, tracker, tmp_path):
    ledger, _ = suggest(sweep, tracker, tmp_path)
    return Watch(sweep, ledger, tracker, LiveTable(METRIC, "min"))


def ended(watch, **last_result) -> None:
    """Tune says that the first trial is done."""
    watch.on_trial_complete(0, [], SimpleNamespace(config={"number": 0}, last_result=last_result))


def test_a_trial_that_never_validated_ends_the_sweep_with_the_remedy(watch):
    ended(watch, step=0, known_metrics=[], done=True)
    assert watch.ledger.trials[0].state == "failed"
    with pytest.raises(UserError, match=r"trial 0: .*never validated, so there is no val/loss .*val_check_interval"):
        watch.on_step_end(0, [])


def test_a_metric_that_is_not_reported_ends_the_sweep_with_those_that_are(watch):
    ended(watch, step=5, known_metrics=["val/accuracy/c2c", "val/los"], done=True)
    with pytest.raises(
        UserError, match=r"did not report\. Did you mean val/los\? It reported val/accuracy/c2c, val/los"
    ):
        watch.on_step_end(0, [])


def test_a_trial_that_was_refused_fails_alone(watch):
    ended(watch, step=0, refused="the store is locked", done=True)
    watch.on_step_end(0, [])
    assert (watch.ledger.trials[0].state, watch.ledger.trials[0].reason) == ("failed", "the store is locked")


def test_a_trial_is_judged_by_the_validation_at_which_it_was_stopped(watch):
    ended(watch, **{"step": 5, METRIC: float("nan"), "finished": False})
    trial = watch.ledger.trials[0]
    assert (trial.state, trial.stopped_at) == ("stopped", 5)
    assert trial.reason == "at step 5, nan was not among the best 1/2"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_its_own_exit_code_and_says_how_to_go_on(tmp_path, number, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as ended, interruptible(tmp_path) as signals, terminated(signals):
        signal.raise_signal(number)
    assert ended.value.code == 128 + number
    assert f"sweep --resume {tmp_path}" in capsys.readouterr().out.replace("\n", "")
    assert signal.getsignal(signal.SIGTERM) == handler


def test_ctrl_c_waits_for_the_end_of_what_must_not_be_cut_off_but_not_twice():
    done = []

    def start(signals: int) -> None:
        with postponed():
            for _ in range(signals):
                signal.raise_signal(signal.SIGINT)
            done.append(signals)

    start(0)
    for signals in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            start(signals)
    assert done == [0, 1]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
