"""TorchServe's java process: started here, or by a guardian that died; how it ended, and when to start it again."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from ts_mps.errors import TsMpsError
from ts_mps.guardian.prepare import Prepared, server_command
from ts_mps.guardian.ready import Expected
from ts_mps.processes import ProcessId
from ts_mps.torchserve import pid_file
from ts_mps.torchserve.api import Api
from ts_mps.torchserve.command import server_environment

#: Statuses with which java ends when it was told to: a JVM answers SIGTERM with 143 and SIGINT with 130.
TOLD_TO_END = (0, 130, 143)
#: Seconds before java is started again, for the first, second ... end within :data:`WITHIN`; after these it is not.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
#: Seconds in which ends are counted together.
WITHIN = 600.0
#: Seconds that java may take to end after `torchserve --stop`, which tells it to and removes its pid file at once.
ENDING = 60.0


@dataclass(frozen=True)
class Ended:
    """How java ended.

    Attributes:
        told: Whether somebody told it to.
        how: In words, for a sentence.
    """

    told: bool
    how: str


class Server:
    """java, as a child of this guardian or, after a take-over, of its predecessor.

    Args:
        process: It.
        child: The same where this guardian started it.
        pid_path: TorchServe's pid file.
    """

    def __init__(self, process: ProcessId | None, child: subprocess.Popen[bytes] | None, pid_path: Path) -> None:
        self.process = process
        self._child = child
        self._pid_path = pid_path
        #: Since when java has been seen to live on without its pid file, by time.monotonic(); None while it is there.
        self._unnamed: float | None = None

    @classmethod
    def start(cls, prepared: Prepared, pid_path: Path, *, again: bool) -> Server:
        """Start java with the instance's effective configuration.

        Args:
            prepared: The start.
            pid_path: TorchServe's pid file.
            again: Whether it ran before; what it printed then is kept.

        Raises:
            OSError: It cannot be run, or its log cannot be written.
        """
        command = server_command(prepared.arguments, prepared.paths, prepared.environ, prepared.java.path)
        environ = server_environment(
            prepared.environ,
            config=prepared.paths.config,
            gpus=[gpu.index for gpu in prepared.plan.gpus],
            bin_folder=prepared.paths.bin,
        )
        output = None if prepared.arguments.foreground else prepared.paths.console.open("ab" if again else "wb")
        try:
            # A session of its own: Ctrl-C must reach the guardian only, or every worker dies inside a kernel.
            child = subprocess.Popen(
                command,
                cwd=prepared.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()
        return cls(ProcessId.of(child.pid), child, pid_path)

    @property
    def pid(self) -> int | None:
        """Its pid as long as it must be collected by :meth:`ended`; None where it is not our child."""
        return self._child.pid if self._child is not None else None

    def status(self) -> int | None:
        """Its exit status; None while it runs, and where it is not our child."""
        return self._child.poll() if self._child is not None else None

    def ended(self) -> Ended | None:
        """How it ended; None while it runs."""
        if self._child is None:
            if self.process is not None and self.process.alive():
                self._unnamed = None if self._pid_path.exists() else self._unnamed or time.monotonic()
                return None
            return Ended(self._was_told(), "with a status that only its dead parent could know")
        status = self._child.poll()
        if status is None:
            return None
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return Ended(status in TOLD_TO_END, how)

    @property
    def nameless(self) -> bool:
        """Whether it, no child of ours, has lived on without its pid file for so long that nobody told it to end."""
        return self._long_unnamed() and self.process is not None and self.process.alive()

    def _was_told(self) -> bool:
        """Whether `torchserve --stop` told it to end: nobody but its parent learns the status.

        That removes the pid file, and a crash does not. But others do as well: systemd-tmpfiles removes what has been
        in /tmp for ten days. So one that lived on for long without its file was not told by the one who removed it.
        """
        return not self._pid_path.exists() and not self._long_unnamed()

    def _long_unnamed(self) -> bool:
        return self._unnamed is not None and time.monotonic() - self._unnamed >= ENDING


def pause(ends: tuple[float, ...], now: float) -> float | None:
    """Seconds to wait before java is started again; None where it has ended too often.

    Args:
        ends: When it ended, the last time included.
        now: Of the same clock.
    """
    count = sum(end > now - WITHIN for end in ends)
    return PAUSES[count - 1] if count <= len(PAUSES) else None


def scale_as_asked(api: Api, expected: Expected) -> bool:
    """Ask a server that was started again for the workers that its configuration does not say.

    Returns:
        False where it has not registered every model yet; to be tried again.
    """
    try:
        if not set(expected.models) <= set(api.models()):
            return False
        for (name, version), workers in expected.scale.items():
            for status in api.describe(name):
                if version in ("", status.version) and status.min_workers != workers:
                    api.scale(name, status.version, workers)
    except TsMpsError:
        return False
    return True


def note_pid(path: Path, server: Server) -> None:
    """Write TorchServe's pid file.

    Raises:
        TsMpsError: It cannot be written.
    """
    if server.process is not None:
        pid_file.write(path, server.process.pid)
