"""What TorchServe's frontend made of a request's body: parts with a content type, and the JSON in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ts_mps.batching.errors import RequestError
from ts_mps.batching.formats import JSON

#: In bytes; what is larger was surely meant to be an instance.
_LONGEST_PARAMETER = 1000


@dataclass(frozen=True)
class Part:
    """One part of a multipart request, or its whole body.

    Args:
        name: Its name in the form; ``body`` or ``data`` for a body.
        value: bytes, or what TorchServe made of it: a str for text/*, the parsed document for application/json.
        content_type: Lower case, without parameters; empty if none was sent.
    """

    name: str
    value: Any
    content_type: str


def read_parts(fields: Mapping[str, Any], headers: Mapping[str, Any]) -> list[Part]:
    """Every part of a request that is not empty, in the order in which they were sent.

    Args:
        fields: TorchServe's dict of the request: its parts by name.
        headers: TorchServe's dict of its headers, in which each part has its own dict under its name.

    Raises:
        RequestError: There is none (400).
    """
    found = []
    for name, value in fields.items():
        if value is None or (isinstance(value, (bytes, bytearray, str)) and not value):
            continue
        about = headers.get(name)
        kind = about.get("content-type") if isinstance(about, Mapping) else None
        found.append(Part(name, value, (kind or "").partition(";")[0].strip().lower()))
    if not found:
        raise RequestError(
            "The request is empty. (A form of type application/x-www-form-urlencoded, as curl -d sends without a "
            "content type, is not read.)",
            400,
        )
    return found


def split_parts(parts: list[Part]) -> tuple[list[Part], list[Part]]:
    """The parts that hold the instances, and those beside them that are parameters.

    Raises:
        RequestError: One of the second kind is too large for a parameter (413).
    """
    main = [part for part in parts if part.name in ("body", "data")][:1]
    if not main:
        return parts, []
    beside = [part for part in parts if part is not main[0]]
    for part in beside:
        if isinstance(part.value, (bytes, bytearray, str)) and len(part.value) > _LONGEST_PARAMETER:
            raise RequestError(
                f"Part {part.name} stands beside {main[0].name} and is too large for a parameter; to send several "
                "instances name none of them body or data.",
                413,
            )
    return main, beside


def read_parameter(value: Any) -> Any:
    """A parameter from a form or an address, where everything is text: numbers, true and false are what they say."""
    text = value.decode("utf-8", "replace") if isinstance(value, (bytes, bytearray)) else value
    try:
        parsed = orjson.loads(text) if isinstance(text, str) else text
    except orjson.JSONDecodeError:
        return text
    return parsed if isinstance(parsed, (int, float)) else text


def is_json(parts: Sequence[Part]) -> bool:
    """Whether the parts are one JSON document: parsed by TorchServe, or called JSON, or with no type and a brace."""
    if len(parts) != 1:
        return False
    part = parts[0]
    if isinstance(part.value, (dict, list, int, float, bool)):
        return True
    if part.content_type == JSON or part.content_type.endswith("+json"):
        return True
    # No content type, as `curl --data-binary` with an emptied header or an old client sends it: look at the bytes.
    unlabelled = part.content_type in ("", "application/octet-stream") and isinstance(part.value, (bytes, bytearray))
    return unlabelled and bytes(part.value[:16]).lstrip()[:1] in (b"{", b"[")


def read_document(part: Part) -> Any:
    """A part as a parsed JSON document.

    Raises:
        RequestError: It is not JSON (400), or it says that it is something else (415).
    """
    value, kind = part.value, part.content_type
    if not isinstance(value, (bytes, bytearray, str)) or (isinstance(value, str) and kind == JSON):
        return value  # TorchServe parsed it
    if kind not in ("", JSON, "text/plain", "application/octet-stream") and not kind.endswith("+json"):
        raise RequestError(f"Content type {kind} is not served here; send {JSON}.", 415)
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not JSON: {error}.", 400) from error


def looks_v2(document: Mapping[str, Any]) -> bool:
    """Whether a document with a list of ``inputs`` is one of KServe v2: one of them has a ``datatype``."""
    return any(isinstance(tensor, dict) and "datatype" in tensor for tensor in document["inputs"])


def as_unicode(text: str) -> str:
    """A text that can be sent back: TorchServe's JSON parser, unlike orjson, lets half a surrogate pair through."""
    return text.encode("utf-8", "replace").decode()
