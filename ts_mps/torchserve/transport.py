"""HTTP sessions for TorchServe's addresses: plain, https with the server's own certificate, and UNIX sockets."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, PoolManager
from urllib3.connection import HTTPConnection

from ts_mps.torchserve.addresses import Address

#: OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name.
_NO_CHECK_TIME = 0x200000


def call_url(address: Address) -> str:
    """Where we call what listens on ``address``: a server on all interfaces is called on loopback."""
    if address.path:
        return "http://localhost"  # the Host header only; the session knows the socket
    host = "127.0.0.1" if address.host == "0.0.0.0" else address.host
    return f"{'https' if address.https else 'http'}://{host}:{address.port}"


def session(address: Address, certificate: Path | None) -> requests.Session:
    """A session that reaches ``address`` and nothing else of the user's environment.

    Args:
        address: Where TorchServe listens.
        certificate: PEM file with the certificates that an https address may show (see :mod:`ts_mps.torchserve.tls`).
    """
    fresh = requests.Session()
    # A proxy, a .netrc password or a CA bundle of the environment are not meant for a call to our own server.
    fresh.trust_env = False
    if address.path:
        fresh.mount("http://", _UnixAdapter(address.path))
    elif address.https:
        fresh.mount("https://", _PinnedAdapter())
        fresh.verify = str(certificate) if certificate else True
    return fresh


class _PinnedAdapter(HTTPAdapter):
    """Trusts the certificates of ``session.verify`` themselves.

    The file is the one that the server was configured with, so being in it is the whole proof: the name need not be
    that of the loopback address that we call, its issuer need not be known, and its dates are the user's concern.
    """

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
        super().init_poolmanager(*args, ssl_context=context, assert_hostname=False, **kwargs)


class _UnixAdapter(HTTPAdapter):
    """Connects to one UNIX socket, whatever host the URL names."""

    def __init__(self, path: str) -> None:
        self._path = path
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        path = self._path

        class Connection(HTTPConnection):
            def connect(self) -> None:
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.settimeout(self.timeout)
                self.sock.connect(path)

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection

        self.poolmanager = PoolManager()
        self.poolmanager.pool_classes_by_scheme = {"http": Pool}
