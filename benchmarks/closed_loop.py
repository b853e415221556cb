"""A closed loop of keep-alive connections from several processes, cheap enough not to be what is measured."""

from __future__ import annotations

import multiprocessing
import selectors
import signal
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from connection import Connection, Target

#: Seconds for all processes to be there before the warm-up begins.
_STARTING_S = 0.3
#: Seconds after which an answer that is still missing at the end counts as an error.
_DRAINING_S = 60.0
#: Seconds between attempts to connect, so that a server that is gone does not turn the loop into a busy one.
_RECONNECTING_S = 0.05


@dataclass(frozen=True)
class Burst:
    """What the connections saw in the counted time.

    Args:
        requests_per_s: Answers with status 200 per second.
        answered: Answers with status 200.
        errors: Other ends of a request, counted by status, by "connection" or by "no answer".
        first_error: The beginning of the first of those answers; empty if there was none.
        p50_ms: Half of the answers took at most so many milliseconds, from the first byte sent to the last received.
        p90_ms: 90 % did.
        p99_ms: 99 % did.
        seconds: The counted time.
    """

    requests_per_s: float
    answered: int
    errors: dict[str, int]
    first_error: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    seconds: float


def burst(target: Target, *, processes: int, connections: int, seconds: float, warm_up: float = 0.0) -> Burst:
    """Keep all connections busy for a while; every process counts over the same span of the clock.

    Args:
        target: What to ask.
        processes: Processes that share the connections.
        connections: Connections of all processes together, each with one request in flight.
        seconds: Counted time.
        warm_up: Seconds of the same load before it, which are not counted; errors are.
    """
    context = multiprocessing.get_context("fork")
    processes = min(processes, connections)
    begin = time.monotonic() + _STARTING_S + warm_up
    shares = [connections // processes + (number < connections % processes) for number in range(processes)]
    firsts = [sum(shares[:number]) for number in range(processes)]
    work = [(target, first, share, begin, begin + seconds) for first, share in zip(firsts, shares, strict=True)]
    with context.Pool(processes, _leave_signals) as pool:
        seen = pool.starmap(_drive, work)
    latencies = sorted(latency for one in seen for latency in one[0])
    errors = sum((one[1] for one in seen), Counter[str]())
    return Burst(
        requests_per_s=len(latencies) / seconds,
        answered=len(latencies),
        errors=dict(errors),
        first_error=next((one[2] for one in seen if one[2]), ""),
        p50_ms=_percentile(latencies, 0.50),
        p90_ms=_percentile(latencies, 0.90),
        p99_ms=_percentile(latencies, 0.99),
        seconds=seconds,
    )


def _leave_signals() -> None:
    """The caller's handlers must not run in the pool's processes, and a Ctrl-C is the caller's, who ends the pool."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _percentile(latencies: Sequence[float], part: float) -> float:
    return 1e3 * latencies[min(len(latencies) - 1, int(part * len(latencies)))] if latencies else 0.0


def _drive(target: Target, first: int, share: int, begin: float, end: float) -> tuple[array[float], Counter[str], str]:
    """One process's loop: latencies in seconds of what was answered in time, errors, the first of them."""
    loop = _Loop(target, first, share, begin, end)
    loop.run()
    return loop.latencies, loop.errors, loop.first_error


class _Loop:
    """The connections of one process."""

    def __init__(self, target: Target, first: int, share: int, begin: float, end: float) -> None:
        self.requests = target.requests()
        self.begin, self.end = begin, end
        self.latencies, self.errors, self.first_error = array("d"), Counter[str](), ""
        self.selector = selectors.DefaultSelector()
        self.busy = 0
        self.waiting = [Connection(target, first + number) for number in range(share)]
        self.retry = 0.0

    def run(self) -> None:
        """Send until the end, then only wait for what is under way."""
        deadline = self.end + _DRAINING_S
        while (now := time.monotonic()) < self.end or (self.busy and now < deadline):
            if self.waiting and self.retry <= now < self.end:
                self._connect()
            for key, _ in self.selector.select(timeout=0.05):
                self._turn(key.data)
        self.errors.update({"no answer": self.busy} if self.busy else {})
        for key in list(self.selector.get_map().values()):
            key.data.socket.close()

    def _connect(self) -> None:
        waiting, self.waiting = self.waiting, []
        for connection in waiting:
            try:
                self.selector.register(connection.connect(), selectors.EVENT_READ, connection)
            except OSError as error:
                self._failed(connection, "connection", str(error))
            else:
                self._next(connection)

    def _next(self, connection: Connection) -> None:
        """Send the connection's next body, unless it is over."""
        connection.began = time.monotonic()
        if connection.began >= self.end:
            return
        connection.unsent = memoryview(self.requests[connection.turn % len(self.requests)])
        connection.turn += 1
        connection.received.clear()
        connection.needed = 0
        connection.busy = True
        self.busy += 1
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        assert connection.socket is not None
        writing = selectors.EVENT_READ | selectors.EVENT_WRITE
        try:
            events = selectors.EVENT_READ if connection.send() else writing
        except OSError as error:
            self._lost(connection, "connection", str(error))
            return
        if self.selector.get_key(connection.socket).events != events:
            self.selector.modify(connection.socket, events, connection)

    def _turn(self, connection: Connection) -> None:
        if connection.unsent:
            self._send(connection)
            if connection.unsent or not connection.busy:
                # Not all is out, or the connection is lost. An answer before the whole request was sent is an error; it
                # is read once all is out.
                return
        try:
            status = connection.receive()
        except (OSError, ValueError) as error:
            self._lost(connection, "connection", str(error))
            return
        if status is None:
            return
        now = time.monotonic()
        if status != 200:
            # TorchServe closes the connection after an error.
            self._lost(connection, str(status), bytes(connection.received[:500]).decode("utf-8", "replace"))
            return
        connection.busy = False
        self.busy -= 1
        if self.begin <= now < self.end:
            self.latencies.append(now - connection.began)
        self._next(connection)

    def _lost(self, connection: Connection, what: str, message: str) -> None:
        assert connection.socket is not None
        self.selector.unregister(connection.socket)
        connection.socket.close()
        connection.unsent = memoryview(b"")
        if connection.busy:  # an idle one may be closed after the end
            connection.busy = False
            self.busy -= 1
            self._failed(connection, what, message)

    def _failed(self, connection: Connection, what: str, message: str) -> None:
        self.errors[what] += 1
        self.first_error = self.first_error or f"{what}: {message}"
        self.waiting.append(connection)
        self.retry = time.monotonic() + _RECONNECTING_S
