"""java, as the guardian keeps it: how it ended, and when it is started again."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from ts_mps.errors import TsMpsError
from ts_mps.guardian.ready import Expected
from ts_mps.guardian.server import PAUSES, WITHIN, Server, pause, scale_as_asked
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
