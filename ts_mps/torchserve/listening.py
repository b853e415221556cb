"""A worker that listens to its guardian: it leaves, or waits to be ended, between two batches and never inside one."""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ts.protocol.otf_message_handler import create_predict_response

from ts_mps.activity import Activity, Attention
from ts_mps.torchserve.word import GIVEN_BACK, LEAVING_SECONDS, NOT_ALONE, Word, word_in

_log = logging.getLogger(__name__)

#: How soon a worker that is parked sees that its guardian has thought better of it.
_LOOK_SECONDS = 0.2

#: What a client is told whose request came after the drain of a stop had begun.
REFUSAL = "This server is being stopped and takes no further requests. Send it to another one, or again later."


def can_listen(config: Mapping[str, Any] | None) -> bool:
    """Whether workers of a model with this model-config.yaml hold nothing else while they hold a word."""
    return not any((config or {}).get(kind) for kind in NOT_ALONE)


def listen(service: Any, activity: Activity, guarded: Callable[[], bool]) -> None:
    """Let a service hear the words that come among its batches.

    As long as the guardian asks for no attention, a batch pays for one look into the shared page and one more call: a
    tenth of a microsecond.

    Args:
        service: What TorchServe loaded, a ``ts.service.Service``.
        activity: The worker's page.
        guarded: Whether the guardian lives; nobody waits for one that does not.
    """
    predict = service.predict

    def heard(batch: Any) -> Any:
        if activity.attention and (answer := _hear(service, activity, guarded, batch)) is not None:
            return answer
        return predict(batch)

    service.predict = heard


def _hear(
    service: Any, activity: Activity, guarded: Callable[[], bool], batch: Sequence[Mapping[str, Any]]
) -> bytes | None:
    """The answer to a word, or to a batch that is refused; None for a batch that is to be served.

    Raises:
        SystemExit: The worker shall leave.
    """
    word = word_in(batch)
    if word is not None and word.secret == activity.secret:
        if word.meant_for(os.getpid()):
            _obey(service, activity, guarded, word)
        return _answer(batch, f"{os.getpid()} serves on.", GIVEN_BACK)
    # A guardian that was killed in the middle of a stop left nobody who would end this worker: it serves on.
    if activity.attention == Attention.REFUSE and guarded():
        return _answer(batch, REFUSAL, 503)
    return None


def _obey(service: Any, activity: Activity, guarded: Callable[[], bool], word: Word) -> None:
    if word.do == "leave":
        _log.info("This worker is replaced; it leaves as its guardian asks.")
        _leave()
    if word.do == "park":
        activity.park(True)
        while time.monotonic() < word.until and activity.attention != Attention.NONE and guarded():
            # Nothing is ever sent to a worker that has not answered, so what comes is the end of the connection.
            if select.select([service.cl_socket], [], [], _LOOK_SECONDS)[0]:
                _leave()
        activity.park(False)


def _leave() -> NoReturn:
    """End as a worker does whose frontend has gone, by way of Python's exit, which lets CUDA close its context.

    The connection is closed by the process's end and not before: TorchServe kills the process when it closes.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LEAVING_SECONDS)
    raise SystemExit(0)


def _answer(batch: Sequence[Mapping[str, Any]], text: str, code: int) -> bytes:
    names = {index: bytes(request["requestId"]).decode() for index, request in enumerate(batch)}
    return bytes(create_predict_response(None, names, text, code))
