"""Where TorchServe listens: its address syntax, as the frontend's ``Connector`` reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ts_mps.errors import PreflightError

_REST = re.compile(r"((https|http)://([^:^/]+)(:([0-9]+))?)|(unix:(/.*))", re.IGNORECASE)
#: Setting -> port by default, and the ports that an address without one gets: plain, https.
_REST_PORTS = {
    "inference_address": (8080, (80, 443)),
    "management_address": (8081, (8081, 8444)),
    "metrics_address": (8082, (8082, 8445)),
}
#: Setting of the port -> setting of the host, and the port by default.
_GRPC_PORTS = {
    "grpc_inference_port": ("grpc_inference_address", 7070),
    "grpc_management_port": ("grpc_management_address", 7071),
}


@dataclass(frozen=True)
class Address:
    """One place to listen.

    Args:
        setting: The key of config.properties that says it.
        host: Name or IPv4 address; empty for a UNIX socket.
        port: TCP port; 0 for a UNIX socket.
        https: Whether it speaks TLS.
        path: Path of a UNIX socket; empty for TCP.
    """

    setting: str
    host: str
    port: int
    https: bool = False
    path: str = ""

    def __str__(self) -> str:
        """As config.properties has it."""
        if self.path:
            return f"unix:{self.path}"
        if self.setting in _GRPC_PORTS:
            return f"{self.host}:{self.port}"
        return f"{'https' if self.https else 'http'}://{self.host}:{self.port}"


def address(settings: Mapping[str, str], setting: str) -> Address:
    """The address that one setting gives.

    Args:
        settings: Resolved values of config.properties.
        setting: ``inference_address``, ``management_address``, ``metrics_address``, ``grpc_inference_port`` or
            ``grpc_management_port``.

    Raises:
        PreflightError: TorchServe could not read it, or the port is one that nobody can use.
    """
    if setting in _GRPC_PORTS:
        return _grpc(settings, setting)
    default, unnamed = _REST_PORTS[setting]
    text = settings.get(setting, f"http://127.0.0.1:{default}")
    match = _REST.fullmatch(text)
    if match is None:
        raise PreflightError(f"{setting} is '{text}', which is neither http(s)://HOST:PORT nor unix:/PATH.")
    if match[7]:
        return Address(setting, "", 0, path=match[7])
    https = match[2].lower() == "https"
    return Address(setting, match[3], _usable(setting, match[5] or str(unnamed[https])), https)


def listeners(settings: Mapping[str, str]) -> tuple[Address, ...]:
    """Every address that TorchServe will bind; the metrics address only where ``enable_metrics_api`` leaves it on.

    Raises:
        PreflightError: One of them cannot be read.
    """
    metrics = settings.get("enable_metrics_api", "true").lower() == "true"
    rest = [setting for setting in _REST_PORTS if metrics or setting != "metrics_address"]
    return tuple(address(settings, setting) for setting in (*rest, *_GRPC_PORTS))


def _grpc(settings: Mapping[str, str], setting: str) -> Address:
    host_setting, default = _GRPC_PORTS[setting]
    port = _usable(setting, settings.get(setting, str(default)))
    tls = settings.get("enable_grpc_ssl", "").lower() == "true"
    return Address(setting, settings.get(host_setting, "127.0.0.1"), port, tls)


def _usable(setting: str, text: str) -> int:
    # The frontend refuses 65535 too; 0 would be a port that nobody, ts-mps included, gets to know.
    if not re.fullmatch(r"\+?[0-9]+", text) or not 0 < int(text) < 65535:
        raise PreflightError(f"{setting} has the port '{text}', which is not a number from 1 to 65534.")
    return int(text)
