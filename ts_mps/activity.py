"""Whether a worker is inside a batch, as another process can see it."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path


class Activity:
    """Two counters in a shared page: batches taken, batches answered. Writing costs no system call.

    A stop reads them to see who is busy: a busy MPS client must not be killed outright.
    """

    _FORMAT = struct.Struct("=QQ")

    def __init__(self, page: mmap.mmap) -> None:
        self._page = page
        self._taken, self._answered = self._FORMAT.unpack_from(page)

    @classmethod
    def create(cls, path: Path) -> Activity:
        """A page with both counters at zero, for the worker."""
        path.write_bytes(bytes(cls._FORMAT.size))
        with path.open("r+b") as stream:
            return cls(mmap.mmap(stream.fileno(), cls._FORMAT.size))

    def begin(self) -> None:
        """A batch has been taken."""
        self._taken += 1
        self._FORMAT.pack_into(self._page, 0, self._taken, self._answered)

    def end(self) -> None:
        """The batch's answer has been made."""
        self._answered = self._taken
        self._FORMAT.pack_into(self._page, 0, self._taken, self._answered)

    @classmethod
    def is_busy(cls, path: Path) -> bool:
        """Whether the worker that writes this page is inside a batch; False where there is no page."""
        try:
            taken, answered = cls._FORMAT.unpack(path.read_bytes())
        except (OSError, struct.error):
            return False
        return bool(taken != answered)
