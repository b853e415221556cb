"""Recorded answers, and the judgement of later ones by them."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from ts_mps.bench.load import answers
from ts_mps.bench.load.bodies import read_bodies
from ts_mps.bench.load.spec import Spec
from ts_mps.errors import NotReadyError, PreflightError
from ts_mps.files import read_json, write_json
from ts_mps.profile.messages import Request

#: Every payload is asked for alone and among so many others: batches of other sizes decide near-ties otherwise, and
#: each of the answers counts as right afterwards.
_AMONG = (1, 4, 16)
#: Part of its time that a generator's process may spend on comparing numbers, at most. Bytes are compared always.
COMPARING = 0.05


def record_references(spec: Spec) -> Path:
    """Ask the server for the answer to each payload in ``spec.bodies`` and write them to ``spec.references``.

    Returns:
        ``spec.references``.

    Raises:
        NotReadyError: A payload is not answered with 200.
        OSError: The file cannot be written.
    """
    return record(spec, read_bodies(spec.bodies))


def record(spec: Spec, bodies: Sequence[Request]) -> Path:
    """The same for these payloads."""
    recorded: list[dict[bytes, None]] = [{} for _ in bodies]  # dicts, as they keep the order and drop what is equal
    with requests.Session() as session:
        session.mount("http", requests.adapters.HTTPAdapter(pool_maxsize=max(_AMONG)))
        session.trust_env = False  # no proxy between us and the server
        for among in _AMONG:
            with ThreadPoolExecutor(among) as pool:
                answered = pool.map(lambda body: _answer(session, spec, body), bodies)
                for seen, answer in zip(recorded, answered, strict=True):
                    seen[answer] = None
    listed = [
        {"body": _digest(body), "answers": [base64.b64encode(answer).decode() for answer in seen]}
        for body, seen in zip(bodies, recorded, strict=True)
    ]
    write_json(spec.references, {"version": 1, "references": listed})
    return spec.references


def _answer(session: requests.Session, spec: Spec, body: Request) -> bytes:
    headers = request_headers(spec.token, body)
    url = spec.base_url.rstrip("/") + spec.path
    try:
        answer = session.post(url, data=body.body, headers=headers, timeout=spec.timeout)
    except requests.RequestException as error:
        raise NotReadyError(f"No reference answer could be recorded from {url}: {error}.") from error
    if answer.status_code != 200:
        what = f"No reference answer could be recorded: {url} answered {answer.status_code}."
        raise NotReadyError(what, details=answer.text[:500])
    return answer.content


def request_headers(token: str, body: Request) -> dict[str, str]:
    """The headers that a payload is sent with."""
    headers = {"Content-Type": body.content_type} if body.content_type else {}
    return {**headers, "Authorization": f"Bearer {token}"} if token else headers


def _digest(body: Request) -> str:
    return hashlib.sha256(body.body).hexdigest()


class Judge:
    """Says which answers are wrong.

    With references, an answer of the same bytes is right, and that is one comparison. Only others are read and compared
    as numbers; 2,000 scores take about 0.2 ms. As this is the generator's own time, it goes on only while
    it stays under ``COMPARING`` of it; answers beyond that pass as they are, and are not said to be compared.
    """

    def __init__(self, spec: Spec, bodies: Sequence[Request]) -> None:
        """Load the references if the spec asks for them.

        Raises:
            PreflightError: There are none, or they are of other payloads.
        """
        self._bytes: list[list[bytes]] = []
        self._spent, self._began = 0.0, time.monotonic()
        if spec.check == "reference":
            self._bytes = _load(spec.references, bodies)
            self._values = [[_read(one) for one in many] for many in self._bytes]
            self._close = answers.tolerance([one for many in self._values for one in many if one is not None])

    def wrong(self, number: int, answer: bytes) -> tuple[str, bool]:
        """Judge an answer of status 200.

        Args:
            number: Of the payload that it answers.
            answer: Its body.

        Returns:
            What is wrong with it, empty if nothing is; and whether it was compared with its reference.
        """
        if not answer:
            return "an empty answer", False
        if not self._bytes:
            return "", False
        if answer in self._bytes[number]:
            return "", True
        began = time.monotonic()
        if self._spent > COMPARING * (began - self._began):
            return "", False
        found = self._difference(answer, self._values[number])
        self._spent += time.monotonic() - began
        return f"{found}: {answer[:400].decode(errors='replace')}" if found else "", True

    def _difference(self, answer: bytes, references: Sequence[Any]) -> str:
        try:
            value = answers.read(answer)
        except answers.Opaque:
            return "other bytes than recorded"
        found = ""
        for reference in references:
            found = answers.difference(value, reference, self._close)
            if not found:
                break
        return found


def _read(answer: bytes) -> Any:
    try:
        return answers.read(answer)
    except answers.Opaque:
        return None


def _load(path: Path, bodies: Sequence[Request]) -> list[list[bytes]]:
    document = read_json(path) or {}
    listed = document.get("references")
    if document.get("version") != 1 or not isinstance(listed, list):
        raise PreflightError(f"{path} holds no recorded answers.", "Record them from a running server first.")
    if [one["body"] for one in listed] != [_digest(body) for body in bodies]:
        raise PreflightError(f"The answers in {path} were recorded for other payloads.", "Record them anew.")
    return [[base64.b64decode(answer) for answer in one["answers"]] for one in listed]
