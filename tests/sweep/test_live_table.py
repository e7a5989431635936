"""What people see of a sweep while it runs."""

import io

import pytest
from rich.console import Console

from c2c_lightning.sweep.labels import short_keys, short_value, varying_keys
from c2c_lightning.sweep.live_table import LINES_AROUND, LiveTable, seconds_left, trial_table
from tests.sweep.invented import METRIC, big_sweep, trial


def printed(trials, width=120, **options) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(trial_table(trials, METRIC, "max", **options))
    return console.file.getvalue()


def row(text: str, number: int) -> str:
    return next(line for line in text.splitlines() if f" {number:03d} " in line)


def test_each_trial_has_its_values_step_score_state_and_time_left():
    trials = [
        trial(0, 0.967, values={"model.layers": [0, 1, 2, 5], "model.gate.kind": "open"}),
        trial(1, 0.5, 4, "running", {"model.layers": "last:2", "model.gate.kind": "open"}, step=100),
        trial(
            2, 0.1, 4, "stopped", {"model.layers": [3], "model.gate.kind": "open"}, 100, reason="not [among] the best"
        ),
        trial(3, state="waiting", values={"model.layers": "all", "model.gate.kind": "open"}),
    ]
    text = printed(trials)
    assert all(word in row(text, 0) for word in ("★", "0–2, 5", "300/300", "96.7%", "finished"))
    assert all(word in row(text, 1) for word in ("last:2", "100/300", "50.0%", "running", "40 s"))
    assert "stopped: not [among] the best" in row(text, 2)
    assert "waiting" in row(text, 3)
    assert "kind" not in text, "a key in which trials do not differ"
    assert text.count("★") == 1


def test_what_is_no_accuracy_has_four_significant_digits():
    made = [trial(n, 0.5) for n in range(2)]
    for one, loss in zip(made, (1.23456, 0.000123456)):
        one.progress[-1]["metrics"]["val/loss"] = loss
    console = Console(width=120, file=io.StringIO())
    console.print(trial_table(made, "val/loss", "min"))
    assert "1.235" in console.file.getvalue()
    assert "0.0001235" in console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("height", [24, 50])
def test_hundreds_of_trials_fit_a_terminal_with_those_that_run_and_the_best(width, height):
    trials = big_sweep(200)
    for one in trials[-3:]:
        one.state = "running"
    best = max((t for t in trials if t.state == "finished"), key=lambda t: t.score(METRIC))
    text = printed(trials, width, max_rows=height - LINES_AROUND)
    lines = text.splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert "★" in row(text, best.number)
    assert all("running" in row(text, one.number) and "%" in row(text, one.number) for one in trials[-3:])
    shown = sum(f" {one.name} " in text for one in trials)
    hidden = [int(word) for word in lines[-1].split() if word.isdigit()]
    assert shown + sum(hidden) == 200


def test_short_names_are_as_long_as_it_takes_to_tell_keys_apart():
    keys = ["model.fuser.init_args.hidden", "data.init_args.hidden", "model.optimizer.lr", "model.layers"]
    assert list(short_keys(keys).values()) == ["fuser.hidden", "data.hidden", "lr", "layers"]


def test_values_are_short():
    assert short_value([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7, 8"
    assert short_value([]) == "none"
    assert short_value({"class_path": "a.b.Fuser", "init_args": {"hidden": 64}}) == "Fuser(hidden=64)"
    assert short_value({"kind": "open"}) == "kind=open"
    assert short_value(0.00012345678) == "0.0001235"
    assert short_value(True) == "true"


def test_a_single_trial_shows_all_its_values():
    assert varying_keys([trial(0, values={"a": 1})]) == ["a"]
    assert varying_keys([trial(0, values={"a": 1, "b": 1}), trial(1, values={"a": 1})]) == ["b"]


def test_time_left_goes_on_between_validations_but_not_past_the_next():
    one = trial(0, 0.5, state="running", step=100, starts=[1000.0])  # 20 s for 100 of 300 steps
    assert one.seconds_left() == 40
    assert one.seconds_left(now=1025.0) == 35
    assert one.seconds_left(now=9999.0) == 20


def test_pauses_are_no_training_time():
    one = trial(0, 0.5, state="running", step=100, starts=[1000.0])  # up to 1020
    one.progress += trial(0, 0.6, step=200).progress
    one.progress[1]["time"] = 5030.0
    one.starts += [1500.0, 5000.0]  # the second start came to nothing
    assert one.seconds == 20 + 30
    assert one.seconds_left() == 25
    one.starts.append(9000.0)
    assert one.seconds_left(now=9010.0) == 15, "only what was trained since it was resumed has gone by"


def test_time_left_of_a_sweep_is_that_of_its_trials_shared_by_those_that_run():
    running = [trial(n, 0.5, state="running", step=150) for n in (0, 1)]  # 30 s left, each
    finished = [trial(2, 0.5)]  # took 60 s
    assert seconds_left([*running, *finished], total=3) == 30
    assert seconds_left([*running, *finished], total=7) == (2 * 30 + 4 * 60) / 2
    assert seconds_left(running, total=7) is None, "nothing tells how long a trial takes"


def test_in_a_log_each_change_has_one_line_and_the_table_comes_last():
    console = Console(file=io.StringIO(), width=100)
    with LiveTable(METRIC, "max", console=console) as live:
        # Reported before the sweep was resumed, which is not told again.
        one, other = trial(0, 0.25, state="running", step=50), trial(1, state="waiting")
        live.show([one, other])
        live.show([one, other])
        one.progress += trial(0, 0.5, step=100).progress
        live.show([one, other])
        one.progress += trial(0, 0.75).progress
        one.state = "finished"
        other.state, other.reason = "failed", "it [ended]"
        live.show([one, other])
        lines = console.file.getvalue().splitlines()
    assert lines == [
        "trial 000: running with lr 0.001",
        f"trial 000: step 100/300, {METRIC} 50.0%, 40 s left",
        f"trial 000: step 300/300, {METRIC} 75.0%",
        "trial 000: finished",
        "trial 001: failed: it [ended]",
    ]
    assert "★ 000" in console.file.getvalue()


def test_on_a_terminal_the_table_is_redrawn():
    console = Console(file=io.StringIO(), width=100, height=24, force_terminal=True, color_system=None)
    with LiveTable(METRIC, "max", console=console) as live:
        live.show([trial(0, 0.5, state="running", step=100)])
        live.show([trial(0, 0.75)])
    text = console.file.getvalue()
    assert text.index("50.0%") < text.index("75.0%")
    assert "trial 000:" not in text
