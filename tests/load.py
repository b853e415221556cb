"""A closed loop of keep-alive connections from several processes, cheap enough not to be what is measured."""

from __future__ import annotations

import multiprocessing
import selectors
import socket
import time


def burst(host: str, port: int, path: str, key: str, *, processes: int, connections: int, seconds: float) -> float:
    """Requests answered with 200, per second.

    Raises:
        RuntimeError: An answer was not 200, or a connection broke.
    """
    context = multiprocessing.get_context("fork")
    arguments = [(host, port, path, key, connections, seconds)] * processes
    with context.Pool(processes) as pool:
        return sum(pool.starmap(_loop, arguments))


def _loop(host: str, port: int, path: str, key: str, connections: int, seconds: float) -> float:
    request = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/octet-stream\r\nContent-Length: 1\r\n\r\nx"
    ).encode()
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        connection = socket.create_connection((host, port))
        selector.register(connection, selectors.EVENT_READ)
        connection.sendall(request)
    answered, began = 0, time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        for ready, _ in selector.select(timeout=1.0):
            connection = ready.fileobj
            answer = connection.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"not a 200: {answer[:200]!r}")
            answered += 1
            connection.sendall(request)
    for connected in list(selector.get_map().values()):
        connected.fileobj.close()
    return answered / (now - began)
