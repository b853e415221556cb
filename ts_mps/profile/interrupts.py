"""Cleaning up that Ctrl-C does not cut short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

_HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back until the block is done; they are delivered then.

    By their handlers and not by the thread's signal mask: a signal that the main thread blocks arrives through any
    other thread (torch, numpy and samplers have some), and Python runs its handler in the main thread all the same. In
    another thread there is nothing to do, as no handler ever runs there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(signum: int, frame: FrameType | None) -> None:
        held.append(signum)

    def deliver() -> None:
        for signum in dict.fromkeys(held):
            signal.raise_signal(signum)

    with ExitStack() as stack:
        stack.callback(deliver)  # last, when all handlers are back
        for signum in _HELD_BACK:
            before = signal.signal(signum, hold)
            stack.callback(signal.signal, signum, signal.SIG_DFL if before is None else before)
        yield
