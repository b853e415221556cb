"""What happened to an instance, one JSON object a line, written by its guardian and by its workers.

Every line is one write to a file opened for appending, which Linux does in one piece, so that writers need no lock. The
file is turned over once it has grown: one old file is kept.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

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
    with closing(Tail(paths, kept=True)) as tail:
        yield from tail.news()


def followed(paths: InstancePaths, pause: Callable[[], bool]) -> Iterator[Event]:
    """All events that are kept, oldest first, and then each as it comes.

    Args:
        paths: The instance.
        pause: Waits a moment for more; False ends it.
    """
    with closing(Tail(paths, kept=True)) as tail:
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
        # Held open: wherever the file is moved to, what is still written there is read.
        self._stream = _opened(self._path)
        # Opened after it: if the file is turned over in between, the old one is the one that we hold.
        self._old = _opened(turned_over(self._path)) if kept else None
        if self._stream is not None and not kept:
            self._stream.seek(0, os.SEEK_END)

    def news(self) -> Iterator[Event]:
        """What was written since the last call, oldest first. A line without its end is waited for."""
        if self._old is not None:
            if self._stream is None or not _same(self._old, self._stream):
                yield from _read(self._old)
            self._old.close()
            self._old = None
        # Looked at first: whoever had the file open while it was moved wrote its line there.
        fresh = self._fresh()
        if self._stream is not None:
            yield from _read(self._stream)
        if fresh is not None:
            if self._stream is not None:
                self._stream.close()
            self._stream = fresh
            yield from _read(fresh)

    def close(self) -> None:
        """Let go of the files."""
        for stream in (self._stream, self._old):
            if stream is not None:
                stream.close()

    def _fresh(self) -> BinaryIO | None:
        """The file that is there now, if it is another one. One that is gone is not replaced yet."""
        stream = _opened(self._path)
        if stream is not None and self._stream is not None and _same(stream, self._stream):
            stream.close()
            return None
        return stream


def _opened(path: Path) -> BinaryIO | None:
    with suppress(OSError):
        return path.open("rb")
    return None


def _same(one: BinaryIO, other: BinaryIO) -> bool:
    return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))


def _read(stream: BinaryIO) -> Iterator[Event]:
    """The rest of a file."""
    if os.fstat(stream.fileno()).st_size < stream.tell():  # cut short, as some log shippers do
        stream.seek(0)
    while (line := stream.readline()).endswith(b"\n"):
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield Event.from_json(value)
    stream.seek(-len(line), os.SEEK_CUR)


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
