"""One keep-alive connection of the load."""

from __future__ import annotations

import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import gevent
from geventhttpclient.client import HTTPClient
from geventhttpclient.response import HTTPParseError

from ts_mps.bench.load.spec import Spec

_BLOCK = 1 << 16


@dataclass(frozen=True)
class Ending:
    """How a request ended.

    Attributes:
        error: Empty for an answer of status 200; else its status, "connection" or "timeout".
        body: The answer's body; for the last two what happened.
    """

    error: str
    body: bytes


class Connection:
    """A connection with at most one request in flight; opened by the first request and anew after an error.

    It uses the client library of Locust's FastHttpUser, geventhttpclient, without FastHttpUser's session around it:
    cookies, redirects and the parsing of the URL for each request make that twice as expensive (108 against 55
    microseconds of CPU for a request), and TorchServe's inference API needs none of them.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._path = urlsplit(spec.base_url).path.rstrip("/") + spec.path
        self._client = self._fresh()

    def post(self, body: bytes, headers: dict[str, str], deadline: float) -> Ending:
        """Send one request and wait for the whole answer.

        Args:
            body: Not empty.
            headers: Its headers.
            deadline: Instant of time.monotonic() after which nothing is waited for any more.
        """
        timeout = gevent.Timeout.start_new(max(deadline - time.monotonic(), 0.0))
        try:
            response = self._client.request("POST", self._path, body=body, headers=headers)
            answer = bytes(response.read())
            if not response.message_complete:
                raise HTTPParseError("the connection was closed in the middle of the answer")
            status = response.get_code()
        except gevent.Timeout as caught:
            # The library does not give a connection back that it was interrupted on.
            self._renew()
            if caught is not timeout:
                raise
            return Ending("timeout", f"no answer within {self._spec.timeout:g} s".encode())
        except (OSError, HTTPParseError) as error:
            self._renew()
            return Ending("connection", (str(error) or type(error).__name__).encode())
        finally:
            timeout.close()
        return Ending("" if status == 200 else str(status), answer)

    def close(self) -> None:
        """Close the socket."""
        self._client.close()

    def _renew(self) -> None:
        self._client.close()
        self._client = self._fresh()

    def _fresh(self) -> HTTPClient:
        # One deadline for the whole request, which :meth:`post` keeps, takes the place of one for each read.
        return HTTPClient.from_url(
            self._spec.base_url,
            concurrency=1,
            block_size=_BLOCK,
            connection_timeout=None,
            network_timeout=None,
            insecure=True,
        )
