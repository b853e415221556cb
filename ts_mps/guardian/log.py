"""What a guardian that serves says on stderr: one JSON object a line, in the form of events.jsonl.

In the background stderr is guardian.log, which is turned over once it has grown: one old file is kept.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from ts_mps.events import Event, turned_over

#: Bytes after which a log of ours is turned over.
_LONGEST = 16 * 2**20
#: Its descriptor.
_STDERR = 2


class Log:
    """Writes to stderr. A full disk, or nobody who reads, loses what is said: nothing may fail because of it.

    Args:
        path: The file that stdout and stderr are; None where they are somebody else's to turn over.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    def event(self, event: Event) -> None:
        """Write an event."""
        with suppress(OSError):
            if self._path is not None and os.fstat(_STDERR).st_size > _LONGEST:
                self._path.replace(turned_over(self._path))
                redirect(self._path)
        with suppress(OSError):
            os.write(_STDERR, json.dumps(event.as_json()).encode() + b"\n")

    def text(self, text: str) -> None:
        """Write something that is no event: a step of a stop, a traceback."""
        self.event(Event("guardian", text))


def redirect(path: Path) -> None:
    """Make a new file stdout and stderr.

    Raises:
        OSError: It cannot be written.
    """
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, _STDERR)
    os.close(log)
