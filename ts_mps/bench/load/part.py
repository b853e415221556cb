"""One process's part of the load: its connections of a closed loop, or its arrivals of an open one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gevent
from gevent.pool import Group

from ts_mps.bench.load.alarm import Alarm
from ts_mps.bench.load.arrivals import arrivals, payload_order
from ts_mps.bench.load.connection import Connection
from ts_mps.bench.load.references import Judge, request_headers
from ts_mps.bench.load.spec import Spec
from ts_mps.bench.load.tally import Tally
from ts_mps.profile.messages import Request

#: Seconds between the attempts of a connection that failed, so that a server that is gone does not turn it into a loop
#: that only burns CPU.
_AGAIN_S = 0.05
#: Requests of one process in flight at once in an open loop. An overloaded server would collect them without end; what
#: is planned beyond is not sent and counts as an error of "connection", so that nothing looks better by it.
_IN_FLIGHT = 4_000

#: Told of every request: milliseconds, bytes of the answer, and what was wrong or "".
Watch = Callable[[float, int, str], None]


@dataclass(frozen=True)
class Turn:
    """Which part of the load a process makes, and when.

    Attributes:
        share: Its number, from 0.
        of: How many parts there are.
        begin: Instant of time.monotonic() from which it sends; the same for all processes.
    """

    share: int
    of: int
    begin: float


@dataclass(frozen=True)
class _Outcome:
    """What became of one request.

    Attributes:
        error: Its kind; empty for a good answer.
        text: What was said of the error.
        at: Instant of time.monotonic() at which it had ended; judging the answer comes after it.
        compared: Whether the answer was compared with a recorded one.
    """

    error: str
    text: str
    at: float
    compared: bool = False


class Part:
    """The part, from its begin until everything that was sent has ended.

    Args:
        spec: The whole load.
        turn: Which part of it.
        bodies: What is sent.
        watch: Told of every request.

    Raises:
        PreflightError: The references cannot be used.
    """

    def __init__(self, spec: Spec, turn: Turn, bodies: Sequence[Request], watch: Watch) -> None:
        self.spec, self.turn = spec, turn
        self.first = turn.begin + spec.load.warm_up
        self.end = self.first + spec.load.seconds
        self.tally = Tally()
        self._bodies = [body.body for body in bodies]
        self._headers = [request_headers(spec.token, body) for body in bodies]
        self._order = payload_order(len(bodies), spec.load.seed)
        self._judge, self._watch = Judge(spec, bodies), watch
        self._connections = 0
        self._busy = 0
        self._cpu_before: float | None = None
        self._cpu_after: float | None = None

    def drive(self) -> None:
        """One connection of a closed loop: the next request as soon as the last one is answered, until the end."""
        # Connections begin at payloads far from each other, or they would all send the same one at a time.
        turn = self.turn.share + self.turn.of * self._connections
        self._connections += 1
        connection = Connection(self.spec)
        self._busy += 1
        try:
            _until(self.turn.begin)
            while (sent := time.monotonic()) < self.end:
                outcome = self._ask(connection, self._order[turn % len(self._order)], sent)
                turn += 1
                # Errors count after the end, too: the requests were under way in the counted time.
                if self.first <= outcome.at and (outcome.error or outcome.at < self.end):
                    self._count(outcome, sent)
                if outcome.error:
                    gevent.sleep(_AGAIN_S)
        finally:
            self._busy -= 1
            connection.close()

    def arrive(self) -> None:
        """All arrivals of an open loop, each sent at its instant by a greenlet of its own, until all have ended."""
        load, idle, senders = self.spec.load, list[Connection](), Group()
        alarm = Alarm()
        try:
            for number, offset in arrivals(load.kind, load.rate, load.seed, self.turn.share, self.turn.of):
                planned = self.turn.begin + offset
                if planned >= self.end:
                    break
                alarm.wait(planned)
                senders.spawn(self._arrival, number, planned, idle)
            senders.join()
        finally:
            alarm.close()
            senders.kill()
            for connection in idle:
                connection.close()

    def _arrival(self, number: int, planned: float, idle: list[Connection]) -> None:
        now = time.monotonic()
        counted = planned >= self.first
        if counted:
            self.tally.lateness.add(max(now - planned, 0.0))
        outcome = _Outcome("connection", f"not sent: {_IN_FLIGHT} requests were in flight already", now)
        if self._busy < _IN_FLIGHT:
            # The last one that became free, so that few connections stay in use where few are needed.
            connection = idle.pop() if idle else Connection(self.spec)
            self._busy += 1
            try:
                outcome = self._ask(connection, self._order[number % len(self._order)], planned)
            finally:
                self._busy -= 1
                idle.append(connection)
        if counted:
            self._count(outcome, planned)

    def _ask(self, connection: Connection, number: int, since: float) -> _Outcome:
        """Send one payload and judge its answer."""
        ending = connection.post(self._bodies[number], self._headers[number], since + self.spec.timeout)
        now = time.monotonic()
        if ending.error:
            outcome = _Outcome(ending.error, ending.body[:500].decode(errors="replace"), now)
        else:
            wrong, compared = self._judge.wrong(number, ending.body)
            outcome = _Outcome("wrong answer" if wrong else "", wrong, now, compared)
        problem = f"{outcome.error}: {outcome.text[:100]}" if outcome.error else ""
        self._watch(1000 * (now - since), len(ending.body), problem)
        return outcome

    def _count(self, outcome: _Outcome, since: float) -> None:
        self.tally.compared += outcome.compared
        if outcome.error:
            self.tally.error(outcome.error, outcome.text)
        else:
            self.tally.answer(outcome.at - since, outcome.at - self.first)

    def run(self) -> None:
        """Wait until the part is done. An open loop sends meanwhile; a closed one's connections are Locust's users.

        Raises:
            OSError: The kernel gives no timer for the arrivals.
        """
        arriving = None if self.spec.load.kind == "closed" else gevent.spawn(self.arrive)
        try:
            _until(self.first)
            self.tally.up = self._busy
            self._cpu_before = time.process_time()
            _until(self.end)
            self._cpu_after = time.process_time()
            if arriving is not None:
                arriving.get()
            while self._busy:
                gevent.sleep(0.01)
        finally:
            if arriving is not None:
                arriving.kill()

    def report(self) -> dict[str, Any]:
        """What was counted so far, and for how many ``seconds``, for Locust's messages."""
        cpu = 0.0
        if self._cpu_before is not None:
            cpu = (time.process_time() if self._cpu_after is None else self._cpu_after) - self._cpu_before
        seconds = max(min(time.monotonic(), self.end) - self.first, 0.0)
        return {"seconds": seconds, **self.tally.report(cpu)}


def _until(instant: float) -> None:
    while (left := instant - time.monotonic()) > 0:
        gevent.sleep(min(left, 60.0))
