"""Ctrl-C and its like for verbs that start processes of their own and must not leave them behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Signals that end a process; the last is what it gets when its terminal is closed.
ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Turn the first signal that ends a process into a KeyboardInterrupt and drop the others: cleaning up goes on.

    SIGHUP is one of them, as a terminal that is closed sends it; under nohup it stays ignored.

    Yields:
        A list that then holds the signal's number.
    """
    caught: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not caught:
            caught.append(number)
            raise KeyboardInterrupt

    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    before = {number: signal.signal(number, handle) for number in ENDING - ignored}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
