"""A stop of an instance that has a guardian: what it is told, how often, and what the guardian does about it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from watching import instance, state

from ts_mps.files import read_json, try_lock, write_json
from ts_mps.guardian import stop as module
from ts_mps.guardian.loop import Guardian
from ts_mps.guardian.state import State, load_state
from ts_mps.guardian.stop import drain_asked, stop
from ts_mps.paths import Home, InstancePaths
from ts_mps.processes import ProcessId

#: Ends at the first SIGTERM, with another status than at none.
GUARDIAN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
print("listens", flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def paths(short_dir: Path) -> InstancePaths:
    return instance(short_dir)


@pytest.fixture
def stopped(paths: InstancePaths, short_dir: Path, monkeypatch) -> Iterator[Callable[..., tuple[int, list[str]]]]:
    """Stop an instance in this phase, whose guardian ends by itself after some seconds: its exit status, and what was
    said."""
    lock = try_lock(paths.guardian_lock)
    assert lock is not None

    def run(phase: str, seconds: float, drain: float | None) -> tuple[int, list[str]]:
        process = subprocess.Popen([sys.executable, "-c", GUARDIAN, str(seconds)], stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout is not None and process.stdout.readline() == "listens\n"
            state(short_dir, phase=phase, guardian=ProcessId.of(process.pid)).save(paths)
            said: list[str] = []

            def wait(processes: object, limit: float) -> tuple[ProcessId, ...]:
                said.append(f"waits {limit:g} s")
                process.wait(30)
                os.close(lock)
                return ()

            monkeypatch.setattr(module, "wait_gone", wait)
            stop(Home(short_dir), paths, drain, said.append)
        return process.returncode, said

    return run


def test_a_guardian_that_serves_is_told_to_end(stopped, paths):
    status, said = stopped("serving", 30.0, 3.0)
    assert status == 15 and "asking the guardian" in said[0]
    assert read_json(paths.stop_request) == {"drain_timeout": 3.0}


def test_who_asks_second_waits_for_the_drain_of_the_first(stopped, paths):
    write_json(paths.stop_request, {"drain_timeout": 600.0})
    status, (told, waits) = stopped("stopping", 1.0, None)
    assert status == 0, "it was sent no second signal, which would have ended the drain"
    assert "stopping already" in told and waits == f"waits {module.longest(600.0):g} s"


def test_who_asks_second_for_no_drain_at_all_hurries(stopped):
    status, _ = stopped("stopping", 30.0, 0.0)
    assert status == 15


def test_without_a_wish_of_who_stopped_it_the_drain_is_its_starts(paths, short_dir):
    now: State = state(short_dir, drain_timeout=7.0)
    assert drain_asked(paths, now) == 7.0
    write_json(paths.stop_request, {"drain_timeout": 2})
    assert drain_asked(paths, now) == 2.0


def kept(short_dir: Path, paths: InstancePaths, pid_path: Path, monkeypatch) -> Guardian:
    """A guardian that took an instance over whose pid file is this one, and takes nothing down."""
    taken_over = state(short_dir, gpus=(), pid_file=str(pid_path))
    prepared = SimpleNamespace(environ={}, paths=paths, taken_over=taken_over, mps=SimpleNamespace(on=False))
    guardian = Guardian(prepared, print, print)  # type: ignore[arg-type]
    guardian._take_over()
    monkeypatch.setattr(guardian, "_down", lambda signals, drain: None)
    return guardian


def signals(*waits: tuple[int, ...]) -> SimpleNamespace:
    """Signals of which these come, one wait after the other."""
    coming = iter(waits)
    return SimpleNamespace(wait=lambda seconds: next(coming), hung_up=lambda: False, hurried=lambda: False)


def keeper(guardian: Guardian, **more: object) -> SimpleNamespace:
    fine = {"acting": True, "check_java": lambda: None, "alive": lambda: None, "turn": lambda: None}
    given = {"close": lambda hurry: None, "server": guardian._server, **more}
    return SimpleNamespace(state=guardian._state, **fine, **given)


def test_who_asks_while_the_watch_is_being_ended_is_second_already(short_dir, paths, monkeypatch):
    guardian, phases = kept(short_dir, paths, short_dir / "pid", monkeypatch), []
    close = keeper(guardian, close=lambda hurry: phases.append(load_state(paths).phase))
    assert guardian._loop(signals((signal.SIGTERM,)), close) == 0  # type: ignore[arg-type]
    assert phases == ["stopping"]


@pytest.mark.parametrize("nameless", [False, True])
def test_a_pid_file_that_is_gone_comes_back_once_nobody_can_have_told_java_to_end(
    short_dir, paths, monkeypatch, nameless
):
    """Else its end after `torchserve --stop` would count as a crash, and it would be started again."""
    pid_path = short_dir / "pid"
    guardian = kept(short_dir, paths, pid_path, monkeypatch)
    assert not pid_path.exists()
    java = SimpleNamespace(nameless=nameless, process=ProcessId(4711, 1))
    guardian._loop(signals((), (signal.SIGTERM,)), keeper(guardian, server=java))  # type: ignore[arg-type]
    assert pid_path.exists() is nameless and (not nameless or pid_path.read_text() == "4711")
