"""The requests that a model is measured with: files as clients send them, in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ts_mps.errors import PreflightError
from ts_mps.profile.messages import Request, batch_message

#: Batches that are made beforehand and sent in turn; more only where so many hold different payloads.
_MOST_MESSAGES = 16


def read_payloads(files: Sequence[Path], content_type: str | None) -> tuple[Request, ...]:
    """One request per file.

    Args:
        files: What clients send as the body.
        content_type: Their Content-Type; None for application/json where the file's name ends in ``.json`` and none
            elsewhere, as ``curl --data-binary`` users have to say it too.

    Raises:
        PreflightError: No file is named, one is missing, unreadable or empty.
    """
    if not files:
        raise PreflightError("No payload is named.", "Name at least one file with --payload.")
    requests = []
    for file in files:
        try:
            body = file.read_bytes()
        except OSError as error:
            raise PreflightError(f"The payload {file} cannot be read: {error.strerror or error}.") from error
        if not body:
            raise PreflightError(f"The payload {file} is empty.", "Name a file with what a client would send.")
        guessed = "application/json" if file.suffix == ".json" else ""
        requests.append(Request(body, guessed if content_type is None else content_type))
    return tuple(requests)


def batch_messages(requests: Sequence[Request], batch_size: int, offset: int = 0) -> tuple[bytes, ...]:
    """The messages of batches built from the requests in turn, to be sent again and again in this order.

    Args:
        requests: At least one.
        batch_size: Requests in each batch.
        offset: The request to begin with, so that several workers do not all get the same at once.
    """
    distinct = len(requests) // math.gcd(len(requests), batch_size)
    messages = []
    for batch in range(min(distinct, _MOST_MESSAGES)):
        first = offset + batch * batch_size
        messages.append(batch_message([requests[(first + i) % len(requests)] for i in range(batch_size)]))
    return tuple(messages)
