"""Processes of a study: none is lost to an interrupt, and each hears the signals that end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace

import psutil
import pytest

from ts_mps.bench import beside, commands
from ts_mps.bench.beside import Beside
from ts_mps.bench.commands import call
from ts_mps.bench.family import Family
from ts_mps.bench.site import LeftRunning
from ts_mps.errors import MpsError
from ts_mps.profile.interrupts import uninterrupted

HEARS = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
SLEEPS = "import time; time.sleep(60)"


def run(tmp_path, code: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    cores = sorted(os.sched_getaffinity(0))
    return call([sys.executable, "-c", code], cores=cores, folder=tmp_path, environ=os.environ, timeout=timeout)


def family(tmp_path, code: str) -> Family:
    with uninterrupted():
        return Family(
            [sys.executable, "-c", code],
            cores=sorted(os.sched_getaffinity(0)),
            folder=tmp_path,
            environ=os.environ,
            console=tmp_path / "out",
        )


def test_a_command_hears_what_was_held_back_while_it_was_started(tmp_path):
    with uninterrupted():
        assert run(tmp_path, HEARS).stdout == "[]\n"
    started = family(tmp_path, HEARS)
    psutil.wait_procs(started.living(), 30)
    assert (tmp_path / "out").read_text() == "[]\n"


def test_an_interrupt_in_the_instant_of_a_start_loses_no_process(tmp_path, monkeypatch):
    started: list[int] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, words: Sequence[str], **more: object) -> None:
            super().__init__(words, **more)  # type: ignore[call-overload]
            started.append(self.pid)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    monkeypatch.setattr(commands.subprocess, "Popen", Popen)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, SLEEPS)
    assert len(started) == 1 and not psutil.pid_exists(started[0])


def test_a_family_is_ended_with_those_who_do_not_listen(tmp_path, monkeypatch):
    """A child that outlives its parent and does not mind SIGTERM; whoever adopts it may never collect it."""
    monkeypatch.setattr("ts_mps.bench.family._STOP_S", 0.5)
    child = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); {SLEEPS}"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    started = family(tmp_path, code)
    deadline = time.monotonic() + 30
    while "up" not in (tmp_path / "out").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    members = started.living()
    assert len(members) == 2
    members[0].kill()
    began = time.monotonic()
    started.end(None)
    assert time.monotonic() - began < 5
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in members)


def test_a_family_that_cannot_be_ended_ends_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr("ts_mps.bench.family._STOP_S", 0.2)
    started = family(tmp_path, SLEEPS)
    (process,) = started.living()
    with monkeypatch.context() as deaf, pytest.raises(LeftRunning) as caught:
        deaf.setattr(psutil.Process, "kill", lambda self: None)
        started.end(None)
    assert str(process.pid) in caught.value.remedy
    started.end(process.pid)
    assert started.living() == []


class Lease:
    """Of a daemon that stays or goes."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.daemon = fails, SimpleNamespace(pipe="/tmp/pipe")

    def release(self) -> str:
        if self.fails:
            raise MpsError("It does not answer.")
        return "The MPS daemon of GPU-1 runs on for its clients: 7."


@pytest.mark.parametrize(
    ("fails", "stays", "sentence"),
    [(False, True, "was not stopped. The MPS daemon of GPU-1 runs on for its clients: 7."), (True, True, "not answer")],
)
def test_a_daemon_that_stays_ends_the_study(monkeypatch, fails, stays, sentence):
    monkeypatch.setattr(beside.daemon, "daemon_alive", lambda daemon: stays)
    here = Beside(SimpleNamespace())
    here._lease = Lease(fails)
    with pytest.raises(LeftRunning, match=sentence):
        here.end()


def test_a_daemon_that_has_gone_is_let_go_of_once(monkeypatch):
    monkeypatch.setattr(beside.daemon, "daemon_alive", lambda daemon: False)
    here = Beside(SimpleNamespace())
    here._lease = Lease()
    here.end()
    here.end()
