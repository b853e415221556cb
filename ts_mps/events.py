"""What happened to an instance, one JSON object a line, written by its guardian and by its workers.

Every line is one write to a file opened for appending, which Linux does in one piece, so that writers need no lock. The
file is turned over once it has grown: one old file is kept.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
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
        time: Seconds since the epoch.
    """

    kind: str
    text: str
    gpu: str = ""
    model: str = ""
    pid: int = 0
    cause: str = ""
    seconds: float | None = None
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
    for path in (turned_over(paths.events), paths.events):
        with suppress(OSError), path.open() as lines:
            for line in lines:
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
