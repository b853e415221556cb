"""Signals as values that one loop waits for (after uvicorn's supervisor: handlers do nothing but leave a note)."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from types import TracebackType
from typing import Any

#: SIGCHLD only wakes the loop, so that a child's death is noticed at once.
WAITED_FOR = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
#: Signals that end the instance. SIGHUP asks for a reload, as it does of most servers; it ends an instance in front
#: whose terminal was closed, of which nobody would see anything any more.
ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
#: Seconds from the first ending signal on in which another one is the same: one Ctrl-C, or one terminal that is closed,
#: may come to a process twice, by the kernel and by a shell or a `timeout` that passes it on.
ONE_WISH = 0.5


class Interrupted(Exception):
    """An ending signal came in the middle of a start."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Signals:
    """While entered, the signals of :data:`WAITED_FOR` are noted in a list, and a socket that we wait on wakes us.

    Works for PID 1 of a container too, for which the kernel ignores every signal that has no handler.
    """

    def __enter__(self) -> Signals:
        self._ending: list[int] = []
        self._first_ending: float | None = None
        self._hurried = False
        self._hung_up = False
        # Who starts us under nohup wants to close the terminal.
        self._at_terminal = _at_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # The interpreter writes a signal's number only for signals that have a Python handler.
        self._before: dict[int, Any] = {number: signal.signal(number, self._note) for number in WAITED_FOR}
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # Whoever forked us blocked them until somebody listens.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ENDING, signal.SIGHUP})
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
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
        ending = self._ending
        self._ending = []
        return tuple(ending)

    def hurried(self) -> bool:
        """Whether an ending signal came :data:`ONE_WISH` after the first one, or later; once it did, that stays so."""
        return self._hurried

    def hung_up(self) -> bool:
        """Whether a SIGHUP that asks for a reload came since the last call."""
        came, self._hung_up = self._hung_up, False
        return came

    def check(self, seconds: float = 0.0) -> None:
        """Like :meth:`wait`, for the time of a start.

        Raises:
            Interrupted: An ending signal came.
        """
        ending = self.wait(seconds)
        if ending:
            raise Interrupted(ending[0])

    def _note(self, signum: int, frame: object) -> None:
        # The socket only wakes: a flood of SIGCHLD may fill it, and an ending signal must not be lost with the rest.
        if signum in ENDING or (signum == signal.SIGHUP and self._at_terminal and not _at_terminal()):
            self._ending.append(signum)
            now = time.monotonic()
            self._first_ending = now if self._first_ending is None else self._first_ending
            self._hurried = self._hurried or now - self._first_ending >= ONE_WISH
        elif signum == signal.SIGHUP:
            self._hung_up = True


def _at_terminal() -> bool:
    """Whether this process has a controlling terminal; one that was closed is none (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
