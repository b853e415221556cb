"""Requests to a running TorchServe, with its token authorisation."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from ts_mps.errors import NotReadyError
from ts_mps.torchserve.addresses import Address
from ts_mps.torchserve.keys import KeyFile, Keys
from ts_mps.torchserve.transport import call_url, session

#: A describe call starts one nvidia-smi per worker, one after the other, so 48 of them take a while.
TIMEOUT = 60.0
_CONNECT_TIMEOUT = 5.0


class ApiError(NotReadyError):
    """TorchServe did not answer, or answered with an error.

    Args:
        what: What was asked of which address and what came back.
        status: HTTP status; 0 if there was no answer.
    """

    def __init__(self, what: str, remedy: str = "", details: str = "", *, status: int = 0) -> None:
        super().__init__(what, remedy, details)
        self.status = status


class Client:
    """Sends requests to the two REST APIs. Can be shared by threads; each has its own connections.

    Args:
        management: Where the management API listens.
        inference: Where the inference API listens.
        key_file: key_file.json in the folder where java was started; None if token authorisation is off.
        certificate: PEM file with the certificates that an https address may show.
        timeout: Seconds that an answer may take.
    """

    def __init__(
        self, management: Address, inference: Address, key_file: Path | None, certificate: Path | None, timeout: float
    ) -> None:
        self._addresses = {"management": management, "inference": inference}
        self._keys = KeyFile(key_file) if key_file else None
        self._certificate = certificate
        self._timeout = timeout
        self._local = threading.local()
        self._renewing = threading.Lock()

    def json(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        """GET from the management API.

        Raises:
            ApiError: No answer, an error, or an answer that is no JSON.
        """
        response = self.request("management", "GET", path, parameters)
        try:
            return response.json()
        except ValueError as error:
            what = f"What answers at {self._addresses['management']} is not TorchServe: {path} gives no JSON."
            raise ApiError(what, "Check who listens there.", status=response.status_code) from error

    def request(
        self,
        kind: str,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> requests.Response:
        """Send a request with the current key, and once more with a renewed one if TorchServe refuses the first.

        Args:
            kind: "management" or "inference".
            method: HTTP method.
            path: Path of the URL.
            parameters: Query.
            body: Body.
            headers: Headers besides the key.
            timeout: Seconds that the answer may take; None for this object's own.

        Raises:
            ApiError: No answer, or a status from 400.
        """
        keys = self._keys.read() if self._keys else None
        response = self._send(kind, method, path, keys.of(kind) if keys else "", parameters, body, headers, timeout)
        if self._keys and _refused(response):
            fresh = self._fresh_key(kind, keys)
            if fresh:
                response = self._send(kind, method, path, fresh, parameters, body, headers, timeout)
            if _refused(response):
                raise self._key_error(kind, response)
        if response.status_code >= 400:
            raise ApiError(
                f"TorchServe at {self._addresses[kind]} answered {method} {path} with {response.status_code}.",
                details=response.text.strip()[:2000],
                status=response.status_code,
            )
        return response

    def _fresh_key(self, kind: str, used: Keys | None) -> str:
        """The key that somebody else has renewed meanwhile, else one that we renew; "" if neither is to be had.

        A renewal ends the life of the old key for everybody, so it is done by one thread and only if it must be.
        """
        assert self._keys is not None
        with self._renewing:
            current = self._keys.read()
            if current is None or (used is not None and current.of(kind) != used.of(kind)):
                return current.of(kind) if current else ""
            self._send("management", "GET", "/token", current.api, {"type": kind})
            renewed = self._keys.read()
            return renewed.of(kind) if renewed else ""

    def _key_error(self, kind: str, response: requests.Response) -> ApiError:
        assert self._keys is not None
        address = self._addresses[kind]
        path = self._keys.path
        if not path.is_file():
            what = f"TorchServe at {address} asks for a key, and its key file {path} is not there."
            remedy = "TorchServe writes it into the folder where it is started; `torchserve --stop` deletes it."
        else:
            what = f"TorchServe at {address} refuses the {kind} key of {path} and does not renew it."
            remedy = "Another TorchServe that was started in the same folder may have overwritten the file."
        return ApiError(what, f"{remedy} Restart this one, each in a folder of its own.", status=response.status_code)

    def _send(
        self,
        kind: str,
        method: str,
        path: str,
        key: str,
        parameters: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> requests.Response:
        seconds = self._timeout if timeout is None else timeout
        address = self._addresses[kind]
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            return self._session(kind).request(
                method,
                call_url(address) + path,
                params=parameters,
                data=body,
                headers={**(headers or {}), **authorization},
                timeout=(_CONNECT_TIMEOUT, seconds),
                allow_redirects=False,
            )
        except requests.exceptions.SSLError as error:
            what = f"TorchServe at {address} shows another certificate than config.properties names."
            raise ApiError(what, "Restart it after a change of its certificate.", str(error)) from error
        except requests.Timeout as error:
            what = f"TorchServe at {address} did not answer {method} {path} within {seconds:g} s."
            raise ApiError(what, "Look into logs/ts_log.log.") from error
        except requests.RequestException as error:
            what = f"TorchServe cannot be reached at {address}."
            raise ApiError(what, "See `ts-mps status` and logs/ts_log.log.", str(error)) from error

    def _session(self, kind: str) -> requests.Session:
        sessions: dict[str, requests.Session] | None = getattr(self._local, "sessions", None)
        if sessions is None:
            sessions = {name: session(address, self._certificate) for name, address in self._addresses.items()}
            self._local.sessions = sessions
        return sessions[kind]


def _refused(response: requests.Response) -> bool:
    """Whether TorchServe refused the key; a handler may answer 400, 401 or 403 too, and is not asked twice."""
    if response.status_code not in (400, 401, 403):
        return False
    try:
        return bool(response.json().get("type") == "InvalidKeyException")
    except (ValueError, AttributeError):
        return False
