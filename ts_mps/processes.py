"""Processes named so that a pid used again is not mistaken for the one that is gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessId:
    """A process: its pid, and its start in clock ticks since boot (field 22 of /proc/PID/stat, proc(5))."""

    pid: int
    started: int

    @staticmethod
    def of(pid: int) -> ProcessId | None:
        """The living process with this pid; None if there is none or only a zombie."""
        started = _started(pid)
        return None if started is None else ProcessId(pid, started)

    def alive(self) -> bool:
        """Whether this very process still runs. A zombie does not: a container may have nobody to reap it."""
        return _started(self.pid) == self.started

    def send(self, signum: int) -> bool:
        """Send a signal to this very process.

        Returns:
            False if it is gone.

        Raises:
            PermissionError: It belongs to somebody else.
        """
        if not self.alive():
            return False
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            return False
        return True


def myself() -> ProcessId:
    """This process."""
    process = ProcessId.of(os.getpid())
    if process is None:
        raise RuntimeError("/proc does not show this process")
    return process


def _started(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name stands in parentheses and may hold anything, blanks and parentheses included.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def wait_gone(
    processes: Iterable[ProcessId], seconds: float, sleep: Callable[[float], None] = time.sleep
) -> tuple[ProcessId, ...]:
    """Wait until the processes are gone, ``seconds`` at the longest.

    Returns:
        Those that still live.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = tuple(process for process in processes if process.alive())
        if not left or time.monotonic() >= deadline:
            return left
        sleep(0.05)


def end(process: ProcessId, seconds: float) -> bool:
    """SIGTERM, then SIGKILL after ``seconds``.

    Returns:
        True if the process went by itself.
    """
    process.send(signal.SIGTERM)
    if not wait_gone((process,), seconds):
        return True
    process.send(signal.SIGKILL)
    wait_gone((process,), 10.0)
    return False


def with_arguments(*words: str) -> tuple[ProcessId, ...]:
    """Every living process of ours whose command line holds these words as consecutive arguments."""
    wanted = b"\0".join(word.encode() for word in words)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"\0" + wanted + b"\0" in b"\0" + command:
            process = ProcessId.of(int(entry.name))
            if process is not None:
                found.append(process)
    return tuple(found)
