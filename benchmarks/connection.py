"""One keep-alive connection of the load: a request's bytes out, an answer's bytes in, no more HTTP than that."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: Bytes taken from a connection at once.
_RECEIVED = 1 << 18


@dataclass(frozen=True)
class Target:
    """What is asked, and where.

    Args:
        host: Name or address.
        port: TCP port.
        path: Path of the URL, such as ``/predictions/model``.
        bodies: Bodies of requests; each connection sends them in turn, and each begins at another one.
        content_type: Of every body.
        token: Bearer token; none if empty.
        headers: Further headers.
    """

    host: str
    port: int
    path: str
    bodies: Sequence[bytes]
    content_type: str = "application/octet-stream"
    token: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def requests(self) -> list[bytes]:
        """Each body as the bytes of a whole request."""
        headers = {"Host": f"{self.host}:{self.port}", "Content-Type": self.content_type, **self.headers}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return [
            f"POST {self.path} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
            for body in self.bodies
        ]


class Connection:
    """One socket with at most one request in flight."""

    def __init__(self, target: Target, turn: int) -> None:
        self.address, self.turn = (target.host, target.port), turn
        self.socket: socket.socket | None = None
        self.unsent = memoryview(b"")
        self.received = bytearray()
        self.needed = 0  # bytes of the whole answer, once its head is there
        self.began = 0.0
        self.busy = False

    def connect(self) -> socket.socket:
        """Open the socket.

        Raises:
            OSError: Nobody listens there.
        """
        self.socket = socket.create_connection(self.address)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.socket

    def send(self) -> bool:
        """Send what can be sent; whether all of it is out."""
        assert self.socket is not None
        with contextlib.suppress(BlockingIOError):
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        return not self.unsent

    def receive(self) -> int | None:
        """Read what has come; the status once the answer is whole.

        Raises:
            OSError: The connection ended, or what came is no answer whose end is known.
        """
        assert self.socket is not None
        try:
            received = self.socket.recv(_RECEIVED)
        except BlockingIOError:
            return None
        if not received:
            raise ConnectionError("closed in the middle of an answer")
        self.received += received
        if not self.needed:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return None
            self.needed = end + 4 + _content_length(bytes(self.received[:end]))
        return int(self.received[9:12]) if len(self.received) >= self.needed else None


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    raise ConnectionError("an answer without Content-Length")
