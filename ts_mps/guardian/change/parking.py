"""Workers that wait with a word of the guardian in their hands, so that TorchServe can end them without loss."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from ts_mps.activity import Attention
from ts_mps.errors import TsMpsError
from ts_mps.guardian.change.stage import Stage
from ts_mps.torchserve.word import Word

#: Seconds that workers wait parked; TorchServe needs some milliseconds to end each.
PARKED_SECONDS = 60.0
#: Seconds between two looks at who is parked.
_PAUSE = 0.01


class Parked(Protocol):
    """The workers of one model, as far as parking needs them (:class:`ts_mps.guardian.change.crew.Crew`)."""

    name: str

    def pids(self) -> set[int]:
        """Pids of its living workers."""

    def parked(self) -> set[int]:
        """Pids of those that wait with a word in their hands."""

    def heed(self, attention: Attention) -> None:
        """Ask for the attention of every living worker."""

    def tell(self, word: Word, patience: float) -> bool:
        """Send a word and wait for its answer."""


class Parking:
    """While entered, these workers hold nothing but a word of ours.

    Args:
        crew: Their model's workers.
        pids: They.
        stage: The change.
        seconds: How long it may take until all of them have come to the end of a batch.
    """

    def __init__(self, crew: Parked, pids: set[int], stage: Stage, seconds: float) -> None:
        self._crew = crew
        self._pids = pids
        self._stage = stage
        self._seconds = seconds

    def __enter__(self) -> None:
        deadline = time.monotonic() + self._seconds
        # All until the same time, and some more than it takes to send them.
        until = deadline + PARKED_SECONDS
        try:
            self._park(deadline, until)
        except BaseException:
            self._crew.heed(Attention.NONE)  # those that are parked already serve on at once
            raise

    def _park(self, deadline: float, until: float) -> None:
        while left := self._pids - self._crew.parked():
            self._stage.check()
            if gone := left - self._crew.pids():
                raise TsMpsError(f"Worker {min(gone)} of model {self._crew.name} died meanwhile; none was ended.")
            if time.monotonic() > deadline:
                raise TsMpsError(
                    f"Not all of {len(self._pids)} workers of model {self._crew.name} that shall end came to the end "
                    f"of a batch within {self._seconds:g} s; none was ended.",
                    "Try again when there is less to do.",
                )
            word = Word("park", tuple(left), until, self._stage.secret)
            # Its answer comes when the worker is ended, or when time is up.
            thread = threading.Thread(target=self._crew.tell, args=(word, self._seconds + PARKED_SECONDS), daemon=True)
            thread.start()
            while thread.is_alive() and left == self._pids - self._crew.parked():
                self._stage.check()
                if time.monotonic() > deadline:
                    break
                thread.join(_PAUSE)

    def __exit__(self, *_: object) -> None:
        """They are ended, or serve on when their time is up."""
