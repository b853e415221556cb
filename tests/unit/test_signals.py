"""Signals as values that a loop waits for, with real signals."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from support import eventually

from ts_mps.guardian.signals import ENDING, ONE_WISH, WAITED_FOR, Interrupted, Signals


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


def test_the_second_one_hurries_and_that_stays_so(signals):
    send(signal.SIGTERM)
    assert signals.wait(5.0) and not signals.hurried()
    time.sleep(ONE_WISH)
    send(signal.SIGHUP)
    assert not signals.hurried()
    send(signal.SIGINT)
    assert signals.hurried() and signals.wait(5.0) and signals.hurried()


def test_two_signals_of_one_keystroke_are_one_wish(signals):
    """`timeout` kills its child and then its group; a closing terminal is told by the kernel and by the shell."""
    send(signal.SIGTERM)
    assert signals.wait(5.0)
    send(signal.SIGTERM, signal.SIGINT)
    assert signals.wait(5.0) and not signals.hurried()


def test_a_hang_up_asks_for_a_reload_and_ends_nothing(signals):
    send(signal.SIGHUP)
    assert signals.wait(5.0) == ()
    assert signals.hung_up() and not signals.hung_up(), "it is reported once"
    send(signal.SIGHUP, signal.SIGTERM)
    assert signals.wait(5.0) == (signal.SIGTERM,) and signals.hung_up()


AT_A_TERMINAL = """
import sys
from pathlib import Path
from ts_mps.guardian.signals import Signals
noted, ready = map(Path, sys.argv[1:])
with Signals() as signals:
    ready.touch()
    ending = signals.wait(20.0)
    noted.write_text(f"{list(map(int, ending))} {signals.hung_up()}")
"""


@pytest.mark.parametrize(
    ("closed", "nohup", "said"),
    [(True, False, f"[{int(signal.SIGHUP)}] False"), (True, True, "[] True"), (False, False, "[] True")],
)
def test_a_terminal_that_is_closed_ends_and_a_hang_up_from_elsewhere_reloads(tmp_path, closed, nohup, said):
    noted, ready = tmp_path / "noted", tmp_path / "ready"
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-c", AT_A_TERMINAL, str(noted), str(ready)])
    try:
        assert eventually(ready.exists)
        if not closed:
            os.kill(pid, signal.SIGHUP)
    finally:
        if closed:
            os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    assert noted.read_text() == said


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
