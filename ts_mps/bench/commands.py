"""Commands of a study: on the server's cores, apart from the terminal, and ended with whoever waits for them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ts_mps.bench.cores import pinned
from ts_mps.profile.interrupts import uninterrupted

#: Seconds for a command that was asked to end to undo what it began.
_UNDO_S = 90.0


def call(
    command: Sequence[str], *, cores: Sequence[int], folder: Path, environ: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    It gets a session of its own: a Ctrl-C at the terminal is for the study, which then asks the command to end and
    waits until it has undone what it began.

    Raises:
        subprocess.TimeoutExpired: It took too long; it is gone.
        OSError: It cannot be run.
    """
    process: subprocess.Popen[str] | None = None
    try:
        with pinned(cores), uninterrupted():
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        if process is not None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_UNDO_S)
            process.kill()
            process.communicate()
        raise
    return subprocess.CompletedProcess(list(command), process.returncode, out, err)
