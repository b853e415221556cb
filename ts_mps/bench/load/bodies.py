"""Payloads on their way into the generator's processes: a folder with a file for each and a list of their types."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ts_mps.errors import PreflightError
from ts_mps.profile.messages import Request
from ts_mps.profile.payload import read_payloads

_LIST = "bodies.json"


def write_bodies(folder: Path, bodies: Sequence[Request]) -> Path:
    """Write bodies and their content types into a new or empty folder.

    Returns:
        The folder.

    Raises:
        PreflightError: There is no body, or one of them is empty.
        OSError: The folder cannot be written.
    """
    if not bodies or not all(body.body for body in bodies):
        raise PreflightError("There is no payload to send, or an empty one.", "Name files with what clients send.")
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, body in enumerate(bodies):
        name = f"{number:05}"
        (folder / name).write_bytes(body.body)
        listed.append({"file": name, "content_type": body.content_type})
    (folder / _LIST).write_text(json.dumps(listed))
    return folder


def read_bodies(folder: Path) -> tuple[Request, ...]:
    """What :func:`write_bodies` wrote.

    Raises:
        PreflightError: It is no such folder.
    """
    try:
        listed = json.loads((folder / _LIST).read_text())
        return tuple(Request((folder / one["file"]).read_bytes(), one["content_type"]) for one in listed)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PreflightError(f"The payloads in {folder} cannot be read: {error}.") from error


def given_bodies(paths: Sequence[Path], content_type: str | None) -> tuple[Request, ...]:
    """Payloads that a person named: files, folders of files, or folders of :func:`write_bodies`.

    Args:
        paths: In this order; the files of a folder by their names, hidden ones left out.
        content_type: As for :func:`ts_mps.profile.payload.read_payloads`.

    Raises:
        PreflightError: Nothing is named, or something is missing, unreadable or empty.
    """
    found: list[Request] = []
    for path in paths:
        if (path / _LIST).is_file():
            found.extend(read_bodies(path))
        elif path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
            if not files:
                raise PreflightError(f"There is no file in the payload folder {path}.")
            found.extend(read_payloads(files, content_type))
        else:
            found.extend(read_payloads([path], content_type))
    return tuple(found) or read_payloads([], content_type)
