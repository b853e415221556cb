"""Liveness, readiness and status over HTTP, for orchestrators: /live, /ready and /status.

TorchServe's own /ping says "Healthy" over dead workers. The server runs in threads of the guardian and reads only
files, so it neither waits for the guardian's loop nor holds it up, and it says so when that loop stands still.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any

from ts_mps.errors import PreflightError
from ts_mps.guardian.readiness import READINESS_VERSION, as_json, not_live, not_ready, see
from ts_mps.paths import InstancePaths

#: Connections at a time.
AT_ONCE = 16
#: Seconds for a connection, however slowly it speaks.
SECONDS = 5.0


class Health:
    """Answers while entered.

    Args:
        paths: The instance.
        host: Name or address to listen on.
        port: TCP port; 0 for any that is free.
    """

    def __init__(self, paths: InstancePaths, host: str, port: int) -> None:
        self._paths = paths
        self._wanted = (host, port)

    def __enter__(self) -> Health:
        """Listen.

        Raises:
            PreflightError: The address cannot be used.
        """
        host, port = self._wanted
        paths = self._paths

        class Server(_Server):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        class Handler(_Handler):
            instance = paths

        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            raise PreflightError(
                f"Health checks cannot be answered at {host}:{port}: {error.strerror or error}.",
                "Choose another with --health-address, or see who listens there with: ss -ltnp",
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    # A stop does not wait for a client that never ends its request.
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        #: Connections in hand and since when, oldest first.
        self._open: dict[Any, float] = {}
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread. Where too many are open the oldest goes, as a probe takes milliseconds.

        Each costs the guardian a descriptor, which it needs for java and the daemons.
        """
        self._drop(list(self._open)[: max(0, len(self._open) - AT_ONCE + 1)])
        self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Drop connections whose time is over; called twice a second (``serve_forever``)."""
        began = time.monotonic() - SECONDS
        self._drop([request for request, since in list(self._open.items()) if since < began])

    def _drop(self, requests: Iterable[Any]) -> None:
        for request in requests:
            self._open.pop(request, None)
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)  # its thread meets the end and closes it

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no event."""


def _from_here(client: str) -> bool:
    address = ip_address(client)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class _Handler(BaseHTTPRequestHandler):
    instance: InstancePaths
    #: Where nobody drops connections any more: one that says nothing must not keep its thread at a stop.
    timeout = SECONDS
    server_version = "ts-mps"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer one of the three pages."""
        page, _, query = self.path.partition("?")
        if page not in ("/live", "/ready", "/status"):
            return self._answer(HTTPStatus.NOT_FOUND, {"error": "There are /live, /ready and /status."})
        if page == "/status" and not _from_here(self.client_address[0]):
            return self._answer(HTTPStatus.FORBIDDEN, {"error": "/status is told to its own machine only."})
        seen = see(self.instance)
        if page == "/status":
            return self._answer(HTTPStatus.OK, as_json(seen))
        reasons = not_live(seen) if page == "/live" else not_ready(seen, strict="strict" in query.split("&"))
        status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        return self._answer(
            status,
            {"version": READINESS_VERSION, page[1:]: not reasons, "look": seen.look, "reasons": list(reasons)},
        )

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        body = json.dumps(value, indent=1).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A probe a second is not worth a line."""
