"""java, as the guardian keeps it: how it ended, and when it is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ts_mps.errors import TsMpsError
from ts_mps.guardian.ready import Expected
from ts_mps.guardian.server import ENDING, PAUSES, WITHIN, Server, pause, scale_as_asked
from ts_mps.processes import ProcessId
from ts_mps.torchserve.api import ModelStatus


def child(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/sh", "-c", script])


@pytest.mark.parametrize(
    ("script", "told", "how"),
    [
        ("exit 143", True, "with status 143"),
        ("exit 0", True, "with status 0"),
        ("exit 1", False, "with status 1"),
        ("kill -9 $$", False, "by signal 9"),
    ],
)
def test_how_a_child_ended(tmp_path: Path, script: str, told: bool, how: str) -> None:
    process = child(script)
    server = Server(None, process, tmp_path / "pid")
    process.wait()
    ended = server.ended()
    assert ended is not None and (ended.told, ended.how) == (told, how)


def test_of_one_that_is_no_child_the_pid_file_says_whether_it_was_told(tmp_path: Path) -> None:
    process = child("sleep 60")
    file = tmp_path / "pid"
    file.touch()
    server = Server(ProcessId.of(process.pid), None, file)
    assert server.ended() is None and server.pid is None and server.status() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ended = server.ended()
    assert ended is not None and not ended.told
    file.unlink()
    ended = server.ended()
    assert ended is not None and ended.told


def died(server: Server, process: subprocess.Popen[bytes]) -> bool:
    """Whether it counts as told to end when it dies."""
    assert server.ended() is None
    process.kill()
    process.wait()
    ended = server.ended()
    assert ended is not None
    return ended.told


@pytest.mark.parametrize(("seconds", "told"), [(0, True), (ENDING - 30, True), (ENDING + 1, False)])
def test_whose_pid_file_was_missing_at_the_take_over_may_just_be_ending(tmp_path, monkeypatch, seconds, told) -> None:
    """It was taken over in the seconds after `torchserve --stop`, or a tidier removed the file long ago."""
    process = child("sleep 60")
    server = Server(ProcessId.of(process.pid), None, tmp_path / "pid")
    assert server.ended() is None and not server.nameless
    now = time.monotonic()
    monkeypatch.setattr("ts_mps.guardian.server.time.monotonic", lambda: now + seconds)
    assert server.nameless is not told, "only then the file is written anew"
    assert died(server, process) == told and not server.nameless


@pytest.mark.parametrize(("seconds", "told"), [(ENDING - 30, True), (ENDING + 1, False)])
def test_who_lives_on_without_a_pid_file_was_not_told_to_end(tmp_path: Path, monkeypatch, seconds, told) -> None:
    """`torchserve --stop` removes it while java still ends; systemd-tmpfiles does when it is ten days old."""
    process = child("sleep 60")
    file = tmp_path / "pid"
    file.touch()
    server = Server(ProcessId.of(process.pid), None, file)
    assert server.ended() is None
    file.unlink()
    assert server.ended() is None
    now = time.monotonic()
    monkeypatch.setattr("ts_mps.guardian.server.time.monotonic", lambda: now + seconds)
    assert died(server, process) == told


def test_pauses_grow_and_end() -> None:
    ends: tuple[float, ...] = ()
    for number, seconds in enumerate(PAUSES):
        ends = (*ends, 1000.0 + number)
        assert pause(ends, ends[-1]) == seconds
    assert pause((*ends, 1010.0), 1010.0) is None
    assert pause((*ends, 1005.0 + WITHIN), 1005.0 + WITHIN) == PAUSES[0], "that was long ago"


class Registered:
    """The management API of a server that loads its models."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.scaled: list[tuple[str, str, int]] = []

    def models(self) -> tuple[str, ...]:
        if not self.names:
            raise TsMpsError("Connection refused.")
        return self.names

    def describe(self, name: str) -> tuple[ModelStatus, ...]:
        return tuple(ModelStatus(name, version, 1, 1, 1, (), 0) for version in ("1.0", "2.0"))

    def scale(self, name: str, version: str, workers: int) -> None:
        self.scaled.append((name, version, workers))


def test_a_server_is_scaled_once_it_knows_every_model() -> None:
    expected = Expected(("a", "b"), {("a", "2.0"): 3, ("b", ""): 1}, proven=False)
    assert not scale_as_asked(Registered(), expected)  # type: ignore[arg-type]
    half = Registered("a")
    assert not scale_as_asked(half, expected) and half.scaled == []  # type: ignore[arg-type]
    whole = Registered("a", "b")
    assert scale_as_asked(whole, expected) and whole.scaled == [("a", "2.0", 3)]  # type: ignore[arg-type]
