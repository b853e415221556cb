"""The drain of a stop: every request that TorchServe has accepted is answered, within the time that it is given.

Readiness has gone false when this begins. First all is served as before, so that a load balancer can look away. If
requests still come when there is no more traffic, or after half of the time, the door is shut: no new connections, and
what comes over the old ones is refused with 503, upon which TorchServe closes them. What was accepted before is served.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from ts_mps.activity import Attention
from ts_mps.errors import TsMpsError
from ts_mps.guardian.state import State
from ts_mps.paths import InstancePaths
from ts_mps.torchserve import door
from ts_mps.torchserve.api import Api
from ts_mps.torchserve.client import ApiError
from ts_mps.torchserve.word import Word
from ts_mps.worker_records import ask, batches_taken, busy, workers

#: The part of its time in which a drain serves on as if nothing were.
SERVE_ON = 0.5
#: Seconds without any batch after which the traffic counts as over: where there was none at all, and where there was.
IDLE, OVER = 0.2, 1.0
#: Seconds in which a batch that was handed out before the door was shut has reached its worker.
ON_THE_WAY = 0.2
#: Seconds in which clients of open connections are told, with their next request, that nothing is served any more.
LAST_WORDS = 0.5
_PAUSE = 0.1
#: What TorchServe says where its queue has no room, and where there is no worker.
_FULL = 503


def drain(
    paths: InstancePaths, state: State, seconds: float, report: Callable[[str], None], hurry: Callable[[], bool]
) -> None:
    """Wait until nothing that was accepted is left to be answered.

    Args:
        paths: The instance.
        state: What runs.
        seconds: How long at the longest.
        report: Told what is waited for.
        hurry: Asked again and again; True ends the drain.
    """
    if seconds <= 0:
        return
    report(f"waiting up to {seconds:g} s for requests in flight")
    traffic = _Traffic(paths, state, hurry, time.monotonic() + seconds)
    traffic.wait(until=time.monotonic() + seconds * SERVE_ON)
    if traffic.over:
        return
    shut = _shut(state)
    if not shut:
        report("TorchServe's door cannot be shut from here: a connection that comes at the very end may be reset")
    _refuse(paths, state, traffic)
    traffic.last_words(shut)


class _Traffic:
    """What is under way in TorchServe."""

    def __init__(self, paths: InstancePaths, state: State, hurry: Callable[[], bool], deadline: float) -> None:
        self._paths = paths
        self._state = state
        self._hurry = hurry
        self._hurried = False
        self._api = state.endpoints.api(timeout=5.0)
        self._deadline = deadline

    @property
    def over(self) -> bool:
        """Whether there is no time left."""
        self._hurried = self._hurried or self._hurry()
        return self._hurried or time.monotonic() >= self._deadline

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(0.1, self._deadline - time.monotonic())

    def wait(self, until: float) -> None:
        """Wait until nothing has come for a while."""
        taken, idle = batches_taken(self._paths), IDLE
        quiet_since = time.monotonic()
        while not self.over and time.monotonic() < until:
            now = batches_taken(self._paths)
            if now != taken or self._at_work():
                taken, idle, quiet_since = now, OVER, time.monotonic()
            elif time.monotonic() - quiet_since >= idle:
                if self._empty():
                    return
                idle, quiet_since = OVER, time.monotonic()
            time.sleep(_PAUSE)

    def last_words(self, shut: bool) -> None:
        """Wait until every answer has reached its client, and every open connection has had its refusal.

        Args:
            shut: Whether no connection is added any more.
        """
        least = time.monotonic() + LAST_WORDS
        while not self.over:
            # With the door shut an empty house stays empty; else a little time must do for those who come and go.
            free = not self._at_work() and (time.monotonic() >= least or (shut and not self._connected()))
            if free and self._empty():
                return
            time.sleep(_PAUSE)

    def _at_work(self) -> bool:
        return bool(busy(self._paths)) or _unanswered(self._state)

    def _empty(self) -> bool:
        """Whether nothing waits in a queue either, or has just left one.

        It is asked last, as a description makes TorchServe start one nvidia-smi after the other, one for each worker.
        """
        return queued(self._api) == 0 and not self._at_work()

    def _connected(self) -> int:
        java = self._state.java
        return door.connected(java.pid, self._state.endpoints.inference.port) if java is not None else 0


def queued(api: Api) -> int:
    """Requests that wait in TorchServe's queues; 0 where it does not answer, for then nothing can be drained."""
    try:
        return sum(status.pending_requests for name in api.models() for status in api.describe(name))
    except TsMpsError:
        return 0


def _unanswered(state: State) -> bool:
    """Whether TorchServe has something to read from a client, or a client something to read from it."""
    port = state.endpoints.inference.port
    return state.java is not None and port > 0 and door.under_way(state.java.pid, port)


def _shut(state: State) -> bool:
    where = state.endpoints
    if state.java is None or not where.inference.port or where.inference.port == where.management.port:
        return False  # behind the same door we talk to it ourselves
    return door.shut(state.java.pid, where.inference.port)


def _refuse(paths: InstancePaths, state: State, traffic: _Traffic) -> None:
    """Have workers refuse what came too late, once all that came before has been handed out.

    TorchServe's queues are served in order: when a word that is sent now has come to a worker, so has all before it.
    Workers that cannot listen serve whatever comes, until the time is over.
    """
    secret = secrets.randbits(64)
    _heed(paths, Attention.LISTEN, secret)
    models = {(w.slot.model, w.slot.version) for w in workers(paths) if w.listens}
    said = [threading.Thread(target=_say, args=(state, *model, secret, traffic.left), daemon=True) for model in models]
    for one in said:
        one.start()
    while any(one.is_alive() for one in said) and not traffic.over:
        time.sleep(_PAUSE)
    if not traffic.over:
        time.sleep(min(ON_THE_WAY, traffic.left))
        _heed(paths, Attention.REFUSE, secret)


def _say(state: State, model: str, version: str | None, secret: int, seconds: float) -> None:
    """Send a word through a model's queue and wait until a worker has given it back."""
    api, headers = state.endpoints.api(), Word("pass", (), 0.0, secret).header()
    deadline = time.monotonic() + seconds
    with suppress(TsMpsError):  # TorchServe does not answer, so nothing can be drained
        for status in api.describe(model):
            while version in (None, status.version) and time.monotonic() < deadline:
                try:
                    api.tell(model, status.version, headers, seconds)
                except ApiError as error:
                    if error.status == _FULL and queued(api):
                        time.sleep(_PAUSE)
                        continue
                break  # given back


def _heed(paths: InstancePaths, attention: Attention, secret: int) -> None:
    for worker in workers(paths):
        if worker.listens:
            with suppress(OSError):  # it has just gone
                ask(paths, worker.slot.number, attention, secret)
