"""What happened to an instance, one JSON object a line, written by its guardian and by its workers.

Every line is one write to a file opened for appending, which Linux does in one piece, so that writers need no lock. The
file is turned over once it has grown: one old file is kept.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ts_mps.files import try_lock
from ts_mps.paths import InstancePaths

#: Version of an event's JSON form.
EVENT_VERSION = 1
#: Bytes after which the file is turned over; some 50,000 events.
_LONGEST = 16 * 2**20


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: What, in words with hyphens: "worker-fault", "server-fault", "daemon-gone", "recovered".
        text: A sentence for people.
        gpu: UUID of the GPU that it is about; empty if none.
        model: Model that it is about; empty if none.
        pid: Process that it is about; 0 if none.
        cause: What made it happen, in words with hyphens: "out-of-memory", "cuda-error-700"; empty if not known.
        seconds: How long it took, where that is what happened ("recovered"); None otherwise.
        clock: Seconds of time.monotonic(), to reckon with: nobody sets it, and it is one for all processes of a boot.
        time: Seconds since the epoch.
    """

    kind: str
    text: str
    gpu: str = ""
    model: str = ""
    pid: int = 0
    cause: str = ""
    seconds: float | None = None
    clock: float = field(default_factory=time.monotonic)
    time: float = field(default_factory=time.time)

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {"version": EVENT_VERSION, **asdict(self)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Event:
        """Read the JSON form back; unknown fields of a later version are left out.

        Raises:
            ValueError: It is not an event.
        """
        try:
            return Event(**{name: value[name] for name in Event.__dataclass_fields__ if name in value})
        except TypeError as error:
            raise ValueError(f"it is not an event: {error}") from error


def record(paths: InstancePaths, event: Event) -> None:
    """Append an event. A full disk or a folder that is gone loses it: nothing may fail because of it."""
    line = json.dumps(event.as_json()).encode() + b"\n"
    with suppress(OSError):
        _turn_over(paths.events)
        descriptor = os.open(paths.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def recorded(paths: InstancePaths) -> Iterator[Event]:
    """All events that are kept, oldest first; lines that are none are left out."""
    return Tail(paths, kept=True).news()


def followed(paths: InstancePaths, pause: Callable[[], bool]) -> Iterator[Event]:
    """All events that are kept, oldest first, and then each as it comes.

    Args:
        paths: The instance.
        pause: Waits a moment for more; False ends it.
    """
    tail = Tail(paths, kept=True)
    going = True
    while going:
        yield from tail.news()
        going = pause()
    yield from tail.news()


class Tail:
    """Follows the events of an instance, through the turn-over of their file and without reading it again.

    Args:
        paths: The instance.
        kept: Whether it begins with all that are kept; else with those that come from now on.
    """

    def __init__(self, paths: InstancePaths, *, kept: bool) -> None:
        self._path = paths.events
        self._file, self._offset = 0, 0
        with suppress(OSError):
            status = (turned_over(self._path) if kept else self._path).stat()
            self._file, self._offset = status.st_ino, 0 if kept else status.st_size

    def news(self) -> Iterator[Event]:
        """What was written since the last call, oldest first. A line without its end is waited for."""
        file, size = self._now()
        if file != self._file:
            # Whoever had it open while it was turned over wrote its line there.
            yield from self._read(turned_over(self._path))
            if not file:
                return
            self._file, self._offset = file, 0
        elif size < self._offset:  # cut short, as some log shippers do
            self._offset = 0
        if size > self._offset:
            yield from self._read(self._path)

    def _now(self) -> tuple[int, int]:
        """Inode and bytes of the file; 0 where there is none."""
        try:
            status = self._path.stat()
        except OSError:
            return 0, 0
        return status.st_ino, status.st_size

    def _read(self, path: Path) -> Iterator[Event]:
        """The rest of the file that is being read, if it is this one."""
        with suppress(OSError), path.open("rb") as lines:
            if os.fstat(lines.fileno()).st_ino != self._file:
                return
            lines.seek(self._offset)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                with suppress(ValueError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        yield Event.from_json(value)


def _turn_over(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.stat().st_size <= _LONGEST or (lock := try_lock(path)) is None:
            return  # not yet, or somebody else is at it
        try:
            # Of two writers at the limit the second would put a nearly empty file in the old one's place.
            if path.stat().st_size > _LONGEST:
                path.replace(turned_over(path))
        finally:
            os.close(lock)


def turned_over(path: Path) -> Path:
    """Where the events before those of ``path`` are."""
    return path.with_name(f"{path.name}.1")
