"""Small file habits that several parts share: atomic JSON, flock, last lines."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from ts_mps.errors import MpsError


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` in one step, so that a reader never sees half a file and a full disk loses nothing.

    Raises:
        OSError: The folder is missing, not writable, or the disk is full; the old file is then still whole.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(json.dumps(value, indent=1) + "\n")
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in ``path``, or None where there is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def known_fields(form: type, value: Mapping[str, Any]) -> dict[str, Any]:
    """What of a dataclass's JSON form its reader knows: a writer of a later version may say more."""
    return {field.name: value[field.name] for field in fields(form) if field.name in value}


def try_lock(path: Path, attempts: int = 1) -> int | None:
    """Open ``path`` and take its exclusive flock without waiting for its holder.

    Args:
        path: The file, made if it is missing.
        attempts: More than one where a look by :func:`is_locked`, which holds the lock for microseconds, must not be
            taken for a holder.

    Returns:
        The open descriptor that holds the lock (close it to let go; the kernel does when the process dies), or None
        if somebody else holds it. It is not inherited by child processes, so a child cannot keep the lock alive.

    Raises:
        OSError: The file cannot be opened or made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for attempt in range(attempts):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01 if attempt + 1 < attempts else 0)
        else:
            return descriptor
    os.close(descriptor)
    return None


def is_locked(path: Path) -> bool:
    """Whether a living process holds the flock of ``path``."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def locked(path: Path, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the exclusive flock of ``path``; waits for whoever has it.

    Args:
        path: The file, made if it is missing.
        timeout_s: Seconds to wait at the longest; None for as long as it takes.

    Raises:
        OSError: The file cannot be opened or made.
        MpsError: Somebody else held it for all of ``timeout_s``.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if timeout_s is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            _lock_within(descriptor, path, timeout_s)
        yield
    finally:
        os.close(descriptor)


def _lock_within(descriptor: int, path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
        else:
            return
    holder = _holder(descriptor)
    who = f"Process {holder}" if holder else "A process that cannot be seen from here"
    raise MpsError(
        f"{who} has held {path} for {timeout_s:g} s.",
        f"See what it waits for, and end it if it hangs: ps -fp {holder}" if holder else "",
    )


def _holder(descriptor: int) -> int:
    """Pid of who took the flock of an open file, by /proc/locks (proc_locks(5)); 0 where it is out of sight."""
    inode = os.fstat(descriptor).st_ino
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            # "1: FLOCK ADVISORY WRITE 708 08:01:7864448 0 EOF"; who waits has "->" after the number.
            if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
                return max(0, int(fields[4]))
    return 0


def last_lines(path: Path, count: int = 15, limit: int = 64 * 1024) -> str:
    """The last ``count`` lines of a log, looking at most ``limit`` bytes back; empty where there is no log."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - limit))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-count:])
