"""Telling systemd how the guardian is, over the datagram socket of sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """Sends states to the service manager; does nothing where none asked for them.

    A message that cannot be delivered is lost: nothing may fail because of it.

    Args:
        address: NOTIFY_SOCKET: a path, or a name in the abstract namespace after "@"; empty for none.
        watchdog: Seconds between two signs of life that the manager waits for; None if it does not watch.
    """

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        #: Half of what is waited for, as sd_watchdog_enabled(3) recommends.
        self._every = None if watchdog is None else watchdog / 2
        self._next = 0.0
        self._said = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Notifier:
        """As NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID say."""
        watchdog = None
        if environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            with suppress(ValueError):
                watchdog = int(environ.get("WATCHDOG_USEC", "")) / 1e6
        return cls(environ.get("NOTIFY_SOCKET", ""), watchdog)

    def ready(self) -> None:
        """The start is over."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """A sentence for `systemctl status`, sent only when it is another one; may be called as often as one likes."""
        if text != self._said:
            self._said = text
            self._send("STATUS=" + " ".join(text.split()))

    def stopping(self) -> None:
        """A stop has begun."""
        self._send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """A start or a stop takes ``seconds`` more from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def alive(self) -> None:
        """A sign of life, sent only when one is due; may be called as often as one likes."""
        now = time.monotonic()
        if self._every is not None and now >= self._next:
            self._next = now + self._every
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # A manager that does not read must not hold the guardian up.
            sender.setblocking(False)
            sender.sendto(message.encode(), self._address)
