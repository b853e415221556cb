"""Clients that send without pause while something is broken, and what became of every request."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import requests
from serving import Serving


@dataclass(frozen=True)
class Answer:
    """One request: when it was sent and answered (monotonic seconds), its HTTP status (0 for no answer), its body."""

    sent: float
    done: float
    status: int
    body: bytes

    @property
    def good(self) -> bool:
        return self.status == 200


class Load:
    """While entered, ``clients`` threads send to one model, each its next request when the last one is answered."""

    def __init__(self, serving: Serving, model: str, *, clients: int = 4, body: bytes = b"0") -> None:
        where = serving.state().endpoints.inference
        self._url = f"http://{where.host}:{where.port}/predictions/{model}"
        self._body = body
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(clients)]
        self.answers: list[Answer] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def end(self) -> None:
        """Send no further request; what is under way is waited for at the exit."""
        self._over.set()

    def __exit__(self, *_: object) -> None:
        self.end()
        for thread in self._threads:
            thread.join(40)

    def _send(self) -> None:
        with requests.Session() as session:
            while not self._over.is_set():
                sent = time.monotonic()
                try:
                    got = session.post(self._url, data=self._body, timeout=30, headers={"Content-Type": "x/bytes"})
                    status, body = got.status_code, got.content
                except requests.RequestException:
                    status, body = 0, b""
                self.answers.append(Answer(sent, time.monotonic(), status, body))
                # Two cores have the server to run as well.
                time.sleep(0.02 if status == 200 else 0.2)

    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.good]

    def good_since(self, moment: float) -> bool:
        """Whether a request that was sent after this moment was answered well."""
        for answer in reversed(self.answers):  # in the order in which they were answered
            if answer.done <= moment:
                return False
            if answer.good and answer.sent > moment:
                return True
        return False
