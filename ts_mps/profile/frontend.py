"""The frontend's end of a worker's connection: load a model, send batches, believe only good answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

from ts_mps.errors import TsMpsError
from ts_mps.profile.messages import Disconnected, Reply, read_reply

#: Seconds that one batch may take.
ANSWER_SECONDS = 300.0
#: Seconds that loading may take; weights may come over a network.
LOAD_SECONDS = 900.0
#: How much of a bad answer's body is shown.
_SHOWN = 2000
_MEMORY_WORDS = ("out of memory", "out of resources", "not enough memory")


class BadAnswer(TsMpsError):
    """The handler answered a request with something else than 200."""


class NoMemory(TsMpsError):
    """The worker ran out of memory: a result for this batch size, not an error of the profile."""


class Frontend:
    """Drives one worker.

    Args:
        connection: Connected to the worker's socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(ANSWER_SECONDS)
        self._stream = connection.makefile("rb")

    def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            Disconnected: The worker has ended.
        """
        try:
            self.connection.sendall(message)
        except TimeoutError:
            raise
        except OSError as error:
            raise Disconnected from error

    def receive(self, seconds: float = ANSWER_SECONDS) -> Reply:
        """Read one reply.

        Raises:
            Disconnected: The worker has ended.
            TimeoutError: It did not answer in time.
        """
        self.connection.settimeout(seconds)
        try:
            return read_reply(self._stream)
        except TimeoutError:
            raise
        except OSError as error:
            raise Disconnected from error

    def ask(self, message: bytes) -> None:
        """Send a batch and read its answer to the end; a handler that streams answers in several parts.

        Raises:
            BadAnswer: A request was not answered with 200.
            NoMemory: The worker ran out of memory.
            Disconnected: The worker has ended.
            TimeoutError: It did not answer in time.
        """
        self.send(message)
        while True:
            reply = self.receive()
            check(reply)
            if not any(answer.more for answer in reply.answers):
                return

    def close(self) -> None:
        """Let the worker end, which it does when its frontend is gone; a second call does nothing."""
        self._stream.close()
        self.connection.close()


def check(reply: Reply) -> None:
    """Refuse a reply in which a request was not answered with 200.

    Raises:
        BadAnswer: A request was not answered with 200; the first one's body is in the details.
        NoMemory: The same, for want of memory.
    """
    if reply.code == 200 and all(answer.status == 200 for answer in reply.answers):
        return
    bad = next((answer for answer in reply.answers if answer.status != 200), None)
    status = reply.code if reply.code != 200 or bad is None else bad.status
    body = bad.body.decode(errors="replace") if bad is not None else ""
    text = f"{reply.message}: {body}" if reply.code != 200 else body
    if status == 507 or any(words in text.lower() for words in _MEMORY_WORDS):
        raise NoMemory(f"The worker ran out of memory ({text[:200]}).")
    raise BadAnswer(
        f"The handler answered a request with {status} in place of 200.",
        "Does the payload hold what a client sends, and does --content-type say what it is?",
        text[:_SHOWN],
    )


def feed(frontend: Frontend, messages: Iterator[bytes], gap: float, start: float, end: float) -> list[float]:
    """Send the next batch ``gap`` after each answer, from ``start`` until an answer comes after ``end``.

    Args:
        frontend: The worker's.
        messages: Batches without end.
        gap: Seconds.
        start: When to begin, by ``time.monotonic``, which is the same in all processes of a Linux machine.
        end: When to stop.

    Returns:
        ``start``, then the time of each answer.

    Raises:
        BadAnswer: As :meth:`Frontend.ask`, and so for what follows.
        NoMemory: A worker ran out of memory.
        Disconnected: It has ended.
        TimeoutError: It did not answer in time.
    """
    time.sleep(max(0.0, start - time.monotonic()))
    times = [start]
    while times[-1] < end:
        frontend.ask(next(messages))
        times.append(time.monotonic())
        time.sleep(gap)
    return times
