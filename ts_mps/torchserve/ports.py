"""Are TorchServe's addresses free?

TorchServe starts every worker before it binds its ports, so a clash costs a whole start and then kills it. We try
the ports first.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import psutil

from ts_mps.errors import PreflightError
from ts_mps.paths import SUN_PATH_BYTES
from ts_mps.torchserve.addresses import Address, listeners

_ANY = ("0.0.0.0", "::")


@dataclass(frozen=True)
class BusyPort:
    """An address that TorchServe could not bind.

    Args:
        address: The address.
        reason: Why not, as the end of the sentence "ADDRESS ...".
        holder: Who listens there, such as "python3 (pid 12)"; empty if unknown or if it is not taken.
    """

    address: Address
    reason: str
    holder: str = ""

    def error(self) -> PreflightError:
        """The finding as a sentence with its remedy."""
        by = f" by {self.holder}" if self.holder else ""
        return PreflightError(
            f"{self.address.setting}: {self.address} {self.reason}{by}.",
            f"Set another {self.address.setting} in config.properties, or stop what uses this one.",
        )


def port_problems(settings: Mapping[str, str]) -> tuple[PreflightError, ...]:
    """Every reason why TorchServe could not listen, or could not be managed, with these settings.

    Args:
        settings: Resolved values of config.properties.

    Raises:
        PreflightError: An address cannot even be read.
    """
    addresses = listeners(settings)
    token_auth = settings.get("disable_token_authorization", "").lower() != "true"
    clashes = [_clash(first, second, token_auth) for first, second in combinations(addresses, 2)]
    return (*filter(None, clashes), *(busy.error() for busy in busy_ports(addresses)))


def busy_ports(addresses: Iterable[Address]) -> tuple[BusyPort, ...]:
    """Try to bind each address, as TorchServe will, and let go again.

    SO_REUSEADDR is set as netty sets it, so connections in TIME_WAIT do not count as busy.
    """
    tried = [_try_socket(address) if address.path else _try_port(address) for address in addresses]
    return tuple(busy for busy in tried if busy is not None)


def _try_port(address: Address) -> BusyPort | None:
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        return BusyPort(address, "names a host that cannot be resolved")
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return BusyPort(address, "is taken", _port_holder(address.port))
            if error.errno == errno.EACCES:
                return BusyPort(address, "is a port that only root may use")
            if error.errno == errno.EADDRNOTAVAIL:
                return BusyPort(address, "is not an address of this machine")
            return BusyPort(address, f"cannot be bound ({os.strerror(error.errno or 0)})")
    return None


def _try_socket(address: Address) -> BusyPort | None:
    path = Path(address.path)
    if len(os.fsencode(path)) > SUN_PATH_BYTES:
        return BusyPort(address, f"is longer than the {SUN_PATH_BYTES} bytes that Linux allows for a socket")
    if not path.parent.is_dir():
        return BusyPort(address, f"is in {path.parent}, which is no folder")
    try:
        mode = path.lstat().st_mode
    except OSError:
        return None
    if not stat.S_ISSOCK(mode):
        return BusyPort(address, "exists and is no socket, so TorchServe would delete it")
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.settimeout(1)
        probe.connect(address.path)
        return BusyPort(address, "is taken")
    return None


def _port_holder(port: int) -> str:
    """Name and pid of a process that listens on the port, as far as we may see it."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and local and local.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def _clash(first: Address, second: Address, token_auth: bool) -> PreflightError | None:
    if not _same(first, second):
        return None
    if (first.setting, second.setting) != ("inference_address", "management_address"):
        return PreflightError(f"{first.setting} and {second.setting} are both {first}.", "Give each its own.")
    if token_auth:  # without tokens, this is the one pair that TorchServe lets share an address
        return PreflightError(
            f"{first.setting} and {second.setting} are both {first}, where TorchServe asks every management call for "
            "the inference key and the management key at once, so that none succeeds.",
            "Give each its own, or switch token authorisation off.",
        )
    return None


def _same(first: Address, second: Address) -> bool:
    if first.path or second.path:
        return first.path == second.path
    hosts = {"127.0.0.1" if host == "localhost" else host for host in (first.host, second.host)}
    return first.port == second.port and (len(hosts) == 1 or any(host in hosts for host in _ANY))
