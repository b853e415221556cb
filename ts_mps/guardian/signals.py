"""Signals as values that one loop waits for (after uvicorn's supervisor: handlers do nothing but leave a note)."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from types import TracebackType
from typing import Any

#: SIGCHLD only wakes the loop, so that a child's death is noticed at once.
WAITED_FOR = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
#: Signals that end the instance. SIGHUP is what a foreground process gets when its terminal is closed.
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class Interrupted(Exception):
    """An ending signal came in the middle of a start."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Signals:
    """While entered, the signals of :data:`WAITED_FOR` are noted by the interpreter in a socket that we wait on.

    Works for PID 1 of a container too, for which the kernel ignores every signal that has no handler.
    """

    def __enter__(self) -> Signals:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # The interpreter writes a signal's number only for signals that have a Python handler.
        self._before: dict[int, Any] = {number: signal.signal(number, _noted) for number in WAITED_FOR}
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()

    def wait(self, seconds: float) -> tuple[int, ...]:
        """Sleep until a signal comes, ``seconds`` at the longest; the ending signals that came, oldest first."""
        select.select([self._reader], [], [], seconds)
        numbers = b""
        with contextlib.suppress(BlockingIOError):
            numbers = self._reader.recv(256)
        return tuple(number for number in numbers if number in ENDING)

    def check(self, seconds: float = 0.0) -> None:
        """Like :meth:`wait`, for the time of a start.

        Raises:
            Interrupted: An ending signal came.
        """
        ending = self.wait(seconds)
        if ending:
            raise Interrupted(ending[0])


def _noted(signum: int, frame: object) -> None:
    """Nothing to do: the number already stands in the socket."""
