"""Something looked at again and again in a thread of its own, so that any span can be cut out afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Sample = TypeVar("Sample")


class Sampler(Generic[Sample]):
    """Samples while entered.

    Args:
        look: Makes one sample; called in the sampler's thread, and must not raise.
        interval: Seconds between samples.
    """

    def __init__(self, look: Callable[[], Sample], interval: float = 0.5) -> None:
        self._look, self._interval = look, interval
        self._samples: list[tuple[float, Sample]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler[Sample]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._take()

    def samples(self) -> tuple[tuple[float, Sample], ...]:
        """(time.time() when it was taken, sample), in order."""
        return tuple(self._samples)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._take()
            self._ended.wait(self._interval)

    def _take(self) -> None:
        self._samples.append((time.time(), self._look()))
