"""Events as they are written, through the turn-over of their file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ts_mps.events import Event, turned_over
from ts_mps.paths import InstancePaths


def followed(paths: InstancePaths, pause: Callable[[], bool]) -> Iterator[Event]:
    """All events that are kept, oldest first, and then each as it comes.

    Args:
        paths: The instance.
        pause: Waits a moment for more; False ends it.
    """
    current = _open(paths.events)
    # Opened before the old one: if the file is turned over in between, the old one is the one that we hold.
    with suppress(OSError), turned_over(paths.events).open("rb") as old:
        if current is None or not os.path.samestat(os.fstat(old.fileno()), os.fstat(current.fileno())):
            yield from _events(_Lines(old))
    lines = _Lines(current) if current is not None else None
    try:
        going = True
        while going:
            if lines is not None:
                yield from _events(lines)
            going = pause()
            if lines is not None and _replaced(paths.events, lines.stream):
                # Whoever had it open while it was turned over has written by now.
                yield from _events(lines)
                lines.stream.close()
                lines = None
            if lines is None and (fresh := _open(paths.events)) is not None:
                lines = _Lines(fresh)
        if lines is not None:
            yield from _events(lines)
    finally:
        if lines is not None:
            lines.stream.close()


class _Lines:
    """The whole lines of a file that grows; the beginning of one is kept until its end is there."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self._begun = b""

    def __iter__(self) -> Iterator[bytes]:
        while line := self.stream.readline():
            self._begun += line
            if self._begun.endswith(b"\n"):
                whole, self._begun = self._begun, b""
                yield whole


def _events(lines: _Lines) -> Iterator[Event]:
    for line in lines:
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield Event.from_json(value)


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except OSError:
        return None


def _replaced(path: Path, stream: BinaryIO) -> bool:
    """Whether ``path`` is another file by now. A file that is gone is not replaced yet."""
    try:
        return not os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except OSError:
        return False
