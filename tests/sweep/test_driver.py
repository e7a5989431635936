"""Signals: what ends a sweep says how to go on."""

import signal

import pytest

from c2c_lightning.runs import Interrupted
from c2c_lightning.sweep.driver import interruptible
from c2c_lightning.sweep.runner import postponed


@pytest.fixture(autouse=True)
def interrupt():
    """Ctrl-C interrupts, however these tests were started: in the background it would be ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_its_own_exit_code_and_says_how_to_go_on(tmp_path, number, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as ended, interruptible(tmp_path):
        signal.raise_signal(number)
    assert ended.value.code == 128 + number
    assert f"sweep --resume {tmp_path}" in capsys.readouterr().out.replace("\n", "")
    assert signal.getsignal(signal.SIGTERM) == handler


def test_sigterm_ends_a_sweep_that_a_script_has_put_into_the_background(tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(Interrupted) as ended, interruptible(tmp_path):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM


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
