"""Signals as values that a loop waits for, with real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from ts_mps.guardian.signals import ENDING, WAITED_FOR, Interrupted, Signals


@pytest.fixture
def signals():
    with Signals() as entered:
        yield entered


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", sorted(ENDING))
def test_an_ending_signal_is_a_value(signals, number):
    send(number)
    assert signals.wait(5.0) == (number,)
    assert signals.wait(0.0) == (), "it is reported once"


def test_they_come_in_the_order_of_their_coming(signals):
    send(signal.SIGINT)
    send(signal.SIGTERM)
    assert signals.wait(5.0) == (signal.SIGINT, signal.SIGTERM)


def test_a_childs_death_wakes_the_wait_and_ends_nothing(signals):
    child = subprocess.Popen(["sleep", "0.1"])
    began = time.monotonic()
    assert signals.wait(30.0) == ()
    assert time.monotonic() - began < 20
    child.wait()


def test_nothing_comes(signals):
    began = time.monotonic()
    assert signals.wait(0.1) == ()
    assert time.monotonic() - began >= 0.09
    signals.check()


def test_check_raises_with_the_number_and_the_name(signals):
    send(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM") as interrupted:
        signals.check(5.0)
    assert interrupted.value.signum == signal.SIGTERM


def test_a_storm_of_signals_does_not_hide_the_end(signals):
    """The socket fills up with SIGCHLD at worst; the number that came first is still there."""
    send(signal.SIGTERM)
    send(*[signal.SIGCHLD] * 5000)
    assert signals.wait(5.0) == (signal.SIGTERM,)


def test_everything_is_put_back():
    before = {number: signal.getsignal(number) for number in WAITED_FOR}
    with Signals():
        assert all(signal.getsignal(number) is not before[number] for number in WAITED_FOR)
    assert {number: signal.getsignal(number) for number in WAITED_FOR} == before
    assert signal.set_wakeup_fd(-1) == -1
