"""Java's .properties files: read with line numbers, written in one step; the syntax is javaproperties' work."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import javaproperties

from ts_mps.errors import PreflightError

_LINE_END = re.compile(r"\r\n|\r|\n")
_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Properties:
    """What a file says.

    Args:
        path: The file; None where there is none.
        values: Key to value, as Java reads them (ISO-8859-1, the last of several equal keys wins). Not in the repr:
            a keystore's password may be among them.
        lines: Key to the number of the line that it stands on, from 1.
    """

    path: Path | None
    values: Mapping[str, str] = field(repr=False)
    lines: Mapping[str, int] = field(repr=False)


def read(path: Path) -> Properties:
    """Read a .properties file as ``java.util.Properties`` does, but refuse what is surely a slip.

    Raises:
        PreflightError: The file cannot be read, starts with a byte order mark (Java would take it for a part of the
            first key), has a ``\\u`` without four hexadecimal digits (Java stops there too), or a key without any
            separator (Java would take the line for a key with an empty value).
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PreflightError(f"{path} cannot be read: {error.strerror}.") from error
    if content.startswith(_BYTE_ORDER_MARKS):
        raise PreflightError(
            f"{path} line 1: it begins with a byte order mark, which Java takes for a part of the first key.",
            "Save the file as plain ASCII or as UTF-8 without a mark.",
        )
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    line = 1
    try:
        for element in javaproperties.parse(content):
            if isinstance(element, javaproperties.KeyValue):
                if not element.value and not re.search(r"[=:\s]", element.source.strip()):
                    raise PreflightError(
                        f"{path} line {line}: '{element.key}' is neither 'key=value' nor a comment.",
                        "Put a '=' behind the key, or a '#' before the line.",
                    )
                values[element.key] = element.value
                lines[element.key] = line
            line += len(_LINE_END.findall(element.source))
    except javaproperties.InvalidUEscapeError as error:
        raise PreflightError(
            f"{path} line {line}: '{error.escape}' is no \\uXXXX escape.", "Write a backslash as '\\\\'."
        ) from error
    return Properties(path, values, lines)


def write(path: Path, values: Mapping[str, str], comments: str) -> None:
    """Replace ``path`` in one step by a file that Java reads back to exactly ``values``, readable by its owner only.

    Args:
        path: The file; its folder must exist.
        values: Key to value; may hold a keystore's password, hence mode 0600.
        comments: Put on top, one ``#`` line per line.

    Raises:
        OSError: The folder is missing, not writable, or the disk is full; an old file is then still whole.
    """
    text = javaproperties.dumps(values, comments=comments, timestamp=False)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(text)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
