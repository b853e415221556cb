"""TorchServe's pid file, kept so that ``torchserve --stop`` and a second ``torchserve`` see a server of ours."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import psutil
from ts.model_server import TS_NAMESPACE

from ts_mps.errors import TsMpsError


def location() -> Path:
    """Where TorchServe's launcher keeps it: one per temporary folder (TMPDIR, TEMP or TMP of the caller)."""
    return Path(tempfile.gettempdir()) / ".model_server.pid"


def is_server(pid: int) -> bool:
    """Whether the process lives and is a TorchServe frontend, by its command line as TorchServe judges it."""
    try:
        return TS_NAMESPACE in psutil.Process(pid).cmdline()
    except (psutil.Error, ValueError, OverflowError):
        return False


def read(path: Path) -> int | None:
    """The pid of the frontend that the file names.

    Returns:
        None where there is no file, or a stale one: empty, garbage, or of a process that is dead or something else.
    """
    try:
        pid = int(path.read_text().split("\n")[0])
    except (OSError, ValueError):
        return None
    return pid if is_server(pid) else None


def write(path: Path, pid: int) -> None:
    """Put ``pid`` there in one step.

    Raises:
        TsMpsError: The file cannot be written, usually because it is another user's.
    """
    fresh = None
    try:
        # A new file under a name that nobody can guess: in a folder that others can write to, anything may lie at a
        # known one, also a link to elsewhere. Readable by all, as TorchServe makes it.
        descriptor, fresh = tempfile.mkstemp(prefix=path.name, dir=path.parent)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(str(pid))
            os.fchmod(descriptor, 0o644)
        Path(fresh).replace(path)
    except OSError as error:
        if fresh:
            Path(fresh).unlink(missing_ok=True)
        raise TsMpsError(
            f"TorchServe's pid file {path} cannot be written: {error.strerror}.",
            "Set TMPDIR to a folder of your own, or have the file removed if another user left it behind.",
        ) from error


def remove(path: Path, pid: int) -> None:
    """Remove the file if it still names ``pid``; another server's stays."""
    try:
        if path.read_text().split("\n")[0].strip() == str(pid):
            path.unlink()
    except (OSError, ValueError):
        return
