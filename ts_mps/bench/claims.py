"""What one process of this machine may have alone: a TCP port, a study's file. A claim ends with its process.

A claim is an abstract Unix socket (unix(7)): the kernel lets one process bind a name, there is no file to leave behind,
and nobody inherits it. The name holds in one network namespace, as ports do.
"""

from __future__ import annotations

import errno
import hashlib
import socket
from pathlib import Path

from ts_mps.errors import PreflightError

_PREFIX = "\0ts-mps-bench/"


class Claim:
    """A name that nobody else has until :meth:`release`.

    Raises:
        OSError: Somebody has it (EADDRINUSE).
    """

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.bind(_PREFIX + name)
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go; a second call does nothing."""
        self._socket.close()


class Ports:
    """TCP ports of 127.0.0.1 that nobody listens on and no other study has.

    A server of another study may have found the same port free and not listen yet: it loads its model first.

    Args:
        count: How many, all different.
    """

    def __init__(self, count: int) -> None:
        self.numbers: list[int] = []
        self._claims: list[Claim] = []
        while len(self.numbers) < count:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
                try:
                    self._claims.append(Claim(f"port-{port}"))
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        continue
                    self.release()
                    raise
            self.numbers.append(port)

    def release(self) -> None:
        """Let others have them; a second call does nothing."""
        for claim in self._claims:
            claim.release()


def claim_file(path: Path, what: str) -> Claim:
    """Be the only one on this machine that writes a file, which need not exist yet.

    Args:
        path: The file.
        what: What a message calls it: "The study".

    Raises:
        PreflightError: Somebody writes it.
    """
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    try:
        return Claim(f"file-{name[:32]}")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise PreflightError(
            f"{what} {path} is being written by another call of ts-mps bench.",
            "Wait until that call has ended, or name another file with -o.",
        ) from error
