"""JSON lines between ``ts-mps profile`` and a process that it started, over a socket which the child inherits."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from ts_mps.profile.messages import Disconnected


class Channel:
    """One end. Each side sends one JSON object a line; the other side's death is the end of the stream."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lines = end.makefile("rb")

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """The parent's end, and the socket for ``Popen(pass_fds=...)``, to be closed once the child runs."""
        ours, theirs = socket.socketpair()
        return cls(ours), theirs

    @classmethod
    def inherited(cls, descriptor: int) -> Channel:
        """The child's end; what the child forks does not get it."""
        os.set_inheritable(descriptor, False)
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """For ``select``; nothing is buffered where every line is answered before the next one is sent."""
        return self._end.fileno()

    def send(self, value: Mapping[str, Any]) -> None:
        """Send one object.

        Raises:
            Disconnected: The other side has ended.
        """
        try:
            self._end.sendall(json.dumps(value).encode() + b"\n")
        except OSError as error:
            raise Disconnected from error

    def receive(self, seconds: float | None = None) -> dict[str, Any]:
        """Receive one object.

        Raises:
            Disconnected: The other side has ended.
            TimeoutError: Nothing came for ``seconds``.
        """
        self._end.settimeout(seconds)
        try:
            line = self._lines.readline()
        except TimeoutError:
            raise
        except OSError as error:
            raise Disconnected from error
        if not line.endswith(b"\n"):
            raise Disconnected
        value: dict[str, Any] = json.loads(line)
        return value

    def close(self) -> None:
        """Close this end; a second call does nothing."""
        self._lines.close()
        self._end.close()
