"""Clients that send without pause over connections that they keep, and know of each request what became of it."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from serving import Serving

from ts_mps.torchserve.listening import REFUSAL

#: Says back what it was sent, in batches, after a moment's work.
ECHO_IN_BATCHES = """
import os, time

class Echo:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        time.sleep(0.005)
        return [bytes(row["body"]) + b" " + str(os.getpid()).encode() for row in data]
"""


@dataclass
class Sent:
    """What became of requests.

    Attributes:
        good: Those that were answered with what they asked for.
        refused: Those that found the door shut: no connection, or TorchServe's 503 with our words.
        lost: All others, each with how.
        by: Good answers by the pid of the worker that gave them.
    """

    good: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    by: Counter[int] = field(default_factory=Counter)


class Senders:
    """While entered, ``clients`` threads send to one model, each about ``rate`` requests a second.

    A body is sent once only, so an answer to another request is seen.
    """

    def __init__(self, serving: Serving, model: str, *, clients: int = 8, rate: float = 40.0) -> None:
        self._where = serving.state().endpoints.inference
        self._path = f"/predictions/{model}"
        self._pause = 1 / rate
        self._numbers = itertools.count()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(clients)]
        self.sent = Sent()
        self._lock = threading.Lock()

    def __enter__(self) -> Senders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        with self._lock:
            # TorchServe answers a request that it dropped never at all.
            self.sent.lost += ["no answer"] * sum(thread.is_alive() for thread in self._threads)

    @property
    def count(self) -> int:
        """Requests that are done."""
        return self.sent.good + self.sent.refused + len(self.sent.lost)

    def until(self, count: int, seconds: float = 60.0) -> bool:
        """Wait until so many are done."""
        deadline = time.monotonic() + seconds
        while self.count < count and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.count >= count

    def _send(self) -> None:
        connection = http.client.HTTPConnection(self._where.host, self._where.port, timeout=50)
        while not self._over.is_set():
            began = time.monotonic()
            self._once(connection, f"request {next(self._numbers)}")
            time.sleep(max(0.0, self._pause - (time.monotonic() - began)))
        connection.close()

    def _once(self, connection: http.client.HTTPConnection, body: str) -> None:
        if connection.sock is None:
            try:
                connection.connect()
            except OSError:
                self._note(refused=True)
                return
        try:
            connection.request("POST", self._path, body.encode(), {"Content-Type": "x/bytes"})
            answer = connection.getresponse()
            status, said = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._note(lost=f"{body}: {error!r}")
            return
        text, _, pid = said.rpartition(b" ")
        if status == 200 and text == body.encode():
            self._note(by=int(pid))
        elif status == 503 and REFUSAL.encode() in said:
            self._note(refused=True)
        else:
            self._note(lost=f"{body}: {status} {said[:120]!r}")

    def _note(self, *, by: int = 0, refused: bool = False, lost: str = "") -> None:
        with self._lock:
            if by:
                self.sent.good += 1
                self.sent.by[by] += 1
            elif refused:
                self.sent.refused += 1
            else:
                self.sent.lost.append(lost)
