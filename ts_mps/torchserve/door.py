"""TorchServe's door to its clients, seen and shut from outside: TorchServe itself drops all connections when it ends.

When TorchServe 0.12.0 is told to end, it closes its listener and at once every connection (``ModelServer.stop``), with
whatever is under way on them; it cannot stop taking requests first. Its parent can do that for it: a listening socket
that is shut down refuses new connections, whoever holds it, and leaves those that there are alone (Linux,
``inet_shutdown``: a listening socket is disconnected).
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: Number of the system call pidfd_getfd(2), Linux 5.6, the same on every architecture.
_PIDFD_GETFD = 438
#: States of a TCP socket, as the kernel numbers them (net/tcp_states.h).
_ESTABLISHED, _LISTEN = 1, 10


@dataclass(frozen=True)
class Socket:
    """A TCP socket, as /proc/net/tcp shows it (proc_net_tcp.txt of the kernel's documentation).

    Attributes:
        port: Its own port.
        state: The kernel's number.
        unsent: Bytes that its peer has not confirmed.
        unread: Bytes that its process has not read; of a listener, connections that it has not accepted.
        inode: What names it among the open files of a process.
    """

    port: int
    state: int
    unsent: int
    unread: int
    inode: int


def shut(pid: int, port: int) -> bool:
    """Let a process take no more connections on a port, while those that it has go on.

    Args:
        pid: The process; a child of ours, or we are root: anybody else may not be allowed to.
        port: Its TCP port.

    Returns:
        Whether that could be done.
    """
    listening = {one.inode for one in sockets(pid, port) if one.state == _LISTEN}
    done = False
    with suppress(OSError):
        for entry in list(Path(f"/proc/{pid}/fd").iterdir()):
            with suppress(OSError):
                name = str(entry.readlink())
                if name.startswith("socket:[") and int(name[8:-1]) in listening:
                    with _borrowed(pid, int(entry.name)) as listener:
                        listener.shutdown(socket.SHUT_RDWR)
                    done = True
    return done


def under_way(pid: int, port: int) -> bool:
    """Whether bytes wait on a connection of this port, for the process to read or for its peer to take."""
    return any(one.unsent or one.unread for one in sockets(pid, port) if one.state == _ESTABLISHED)


def connected(pid: int, port: int) -> int:
    """How many connections there are on this port."""
    return sum(one.state == _ESTABLISHED for one in sockets(pid, port))


def sockets(pid: int, port: int) -> Iterator[Socket]:
    """Sockets of a local port in the network that a process sees; none where it is gone."""
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                words = line.split()
                if int(words[1].rpartition(":")[2], 16) == port:
                    unsent, _, unread = words[4].partition(":")
                    yield Socket(port, int(words[3], 16), int(unsent, 16), int(unread, 16), int(words[9]))


def _borrowed(pid: int, descriptor: int) -> socket.socket:
    """The socket behind another process's descriptor.

    Raises:
        OSError: We may not have it, or it is gone.
    """
    process = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        ours = libc.syscall(_PIDFD_GETFD, process, descriptor, 0)
        if ours < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return socket.socket(fileno=ours)
    finally:
        os.close(process)
