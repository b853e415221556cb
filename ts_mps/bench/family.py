"""The processes of a server that is not ts-mps: started on the study's cores, remembered, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from ts_mps.bench.cores import pinned
from ts_mps.bench.site import LeftRunning

#: Seconds for a server that was asked to end, and again for one that was killed.
_STOP_S = 30.0
_POLL_S = 0.05


class Family:
    """A process and all that it has started. Made while signals are held back, or an interrupt could lose it.

    Args:
        command: What is run, in a session of its own: a Ctrl-C at the terminal is for the study.
        cores: Its host cores, which its children inherit.
        folder: Where it runs.
        environ: Its environment.
        console: File for what it prints.

    Raises:
        OSError: It cannot be run.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cores: Sequence[int],
        folder: Path,
        environ: Mapping[str, str],
        console: Path,
    ) -> None:
        with pinned(cores), console.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # Held from its birth on, so that a stranger who gets its pid later is never taken for it.
        self._root = psutil.Process(self._process.pid)
        self._known = [self._root]

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Of the process that was started; None while it runs."""
        return self._process.poll()

    def living(self) -> list[psutil.Process]:
        """The process, its children and theirs; those seen once are remembered, as a dead parent has none."""
        with suppress(psutil.Error):
            self._known += [one for one in self._root.children(recursive=True) if one not in self._known]
        return [process for process in self._known if _lives(process)]

    def end(self, first: int | None) -> None:
        """End all of them.

        Args:
            first: Pid of the one that ends the others when it is asked to end; None where there is no such process.

        Raises:
            LeftRunning: Some cannot be ended.
        """
        left = self.living()
        if first is not None:
            with suppress(ProcessLookupError):
                os.kill(first, signal.SIGTERM)
        left = _after(left, _STOP_S)
        # What was started while it was being ended is its child, or one that a signal has not reached.
        left += [process for process in self.living() if process not in left]
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        left = _after(left, _STOP_S)
        self._process.poll()
        if left:
            pids = " ".join(str(process.pid) for process in left)
            raise LeftRunning("Processes of a server could not be ended.", f"Look at them with: ps -fp {pids}")


def _after(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Which of them still live when so much time has passed, or none as soon as none does.

    ``psutil.wait_procs`` waits until a dead process is collected as well, and process 1 of a container may be a program
    that collects nobody.
    """
    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if _lives(process)]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return left


def _lives(process: psutil.Process) -> bool:
    """Whether a process does anything yet; one that only waits for its parent to take note does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
