"""Ctrl-C and its like for verbs that start processes of their own and must not leave them behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ts_mps.guardian.signals import ENDING


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
