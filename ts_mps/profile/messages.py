"""TorchServe's binary messages as its frontend writes and reads them; the worker's side is ``otf_message_handler``.

The formats are those of ``ts/protocol/otf_message_handler.py`` of TorchServe 0.12.0: numbers are signed, of four
bytes, big-endian; a text is its length and its bytes; a list ends with -1.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_NUMBER = struct.Struct("!i")
_END = _NUMBER.pack(-1)
#: A length above this is no length: the stream is out of step.
_LONGEST = 1 << 30


class Stream(Protocol):
    """What answers are read from."""

    def read(self, size: int, /) -> bytes | None:
        """Exactly ``size`` bytes, fewer at the end of the stream."""


class Disconnected(Exception):
    """The worker closed the connection: it has ended."""


@dataclass(frozen=True)
class Request:
    """One request of a batch.

    Attributes:
        body: What a client would send.
        content_type: Its Content-Type; empty for none.
    """

    body: bytes
    content_type: str = ""


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Attributes:
        request_id: Of the request.
        status: HTTP status.
        body: What a client would receive.
        more: Whether the handler streams and further parts of this answer follow.
    """

    request_id: str
    status: int
    body: bytes
    more: bool


@dataclass(frozen=True)
class Reply:
    """What a worker sends for a LOAD or a batch: a code as HTTP has them, a message, and an answer per request."""

    code: int
    message: str
    answers: tuple[Answer, ...]


def load_message(name: str, folder: str, batch_size: int, handler: str, gpu: int | None) -> bytes:
    """LOAD: have the worker load the model.

    Args:
        name: Registered model name.
        folder: The unpacked archive.
        batch_size: Most requests in a batch.
        handler: The manifest's handler.
        gpu: The GPU that TorchServe would name; None for a worker on the CPU.
    """
    envelope, limit_pixels = _text(""), b"\x01"
    texts = _text(name) + _text(folder) + _NUMBER.pack(batch_size) + _text(handler)
    return b"L" + texts + _NUMBER.pack(-1 if gpu is None else gpu) + envelope + limit_pixels


def batch_message(requests: Sequence[Request]) -> bytes:
    """PREDICT: a batch of requests with raw bodies, each under the name "body", as from REST."""
    parts = [b"I"]
    for number, request in enumerate(requests):
        parts.append(_text(request_id(number)))
        if request.content_type:
            parts += [_text("Content-Type"), _text(request.content_type)]
        parts += [_END, _text("body"), _text(request.content_type), _NUMBER.pack(len(request.body)), request.body, _END]
    parts.append(_END)
    return b"".join(parts)


def request_id(number: int) -> str:
    """The id of the request at this place of its batch, as long as TorchServe's."""
    return f"00000000-0000-4000-8000-{number:012d}"


def read_reply(stream: Stream) -> Reply:
    """Read one reply.

    Raises:
        Disconnected: The worker has ended.
        ValueError: What arrives is not TorchServe's format.
    """
    code, message = _number(stream), _read_text(stream)
    answers = []
    while (length := _number(stream)) != -1:
        answers.append(_answer(stream, _exactly(stream, _checked(length)).decode()))
    return Reply(code, message, tuple(answers))


def _answer(stream: Stream, request: str) -> Answer:
    _read_text(stream)  # Content-Type
    status = _number(stream)
    _read_text(stream)  # reason phrase
    headers = {_read_text(stream): _read_text(stream) for _ in range(_checked(_number(stream)))}
    body = _exactly(stream, _checked(_number(stream)))
    return Answer(request, status, body, headers.get("ts_stream_next") == "true")


def _text(text: str) -> bytes:
    data = text.encode()
    return _NUMBER.pack(len(data)) + data


def _number(stream: Stream) -> int:
    number: int = _NUMBER.unpack(_exactly(stream, _NUMBER.size))[0]
    return number


def _read_text(stream: Stream) -> str:
    return _exactly(stream, _checked(_number(stream))).decode(errors="replace")


def _checked(length: int) -> int:
    if not 0 <= length <= _LONGEST:
        raise ValueError(f"a length of {length} in a worker's answer")
    return length


def _exactly(stream: Stream, size: int) -> bytes:
    data = stream.read(size) if size else b""
    if data is None or len(data) < size:
        raise Disconnected
    return data
