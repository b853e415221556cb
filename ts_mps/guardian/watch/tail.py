"""What workers have newly written into the instance's events, read without reading the file again and again."""

from __future__ import annotations

import json
from contextlib import suppress

from ts_mps.events import Event
from ts_mps.paths import InstancePaths

#: What a worker records of itself before it leaves.
_FROM_WORKERS = frozenset({"worker-fault"})


class Tail:
    """Follows the events of an instance from now on.

    Args:
        paths: The instance.
    """

    def __init__(self, paths: InstancePaths) -> None:
        self._path = paths.events
        self._file = 0
        self._offset = 0
        with suppress(OSError):
            status = self._path.stat()
            self._file, self._offset = status.st_ino, status.st_size

    def news(self) -> tuple[Event, ...]:
        """What workers have written since the last call, oldest first."""
        try:
            status = self._path.stat()
            # Turned over or made just now; or cut short, by a log shipper or by one made anew with the same inode.
            if status.st_ino != self._file or status.st_size < self._offset:
                self._file, self._offset = status.st_ino, 0
            if status.st_size == self._offset:
                return ()
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                text = stream.read()
        except OSError:
            return ()
        whole = text.rpartition(b"\n")[0]
        self._offset += len(whole) + 1 if whole else 0
        found = []
        for line in whole.splitlines():
            with suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict) and value.get("kind") in _FROM_WORKERS:
                    found.append(Event.from_json(value))
        return tuple(found)
