"""Where ``-o`` writes a result."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from ts_mps.errors import PreflightError
from ts_mps.files import write_json


def file_option(text: str) -> Path:
    """The type of an option that names a file.

    Raises:
        argparse.ArgumentTypeError: It is empty, as a variable is that nobody set.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def check_writable(path: Path, what: str) -> None:
    """Minutes of work must not end in a folder that is not there.

    Args:
        path: Where the result shall go.
        what: The result, for the sentence: "The plan".

    Raises:
        PreflightError: It cannot be written there.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise _refusal(path, what, "it is a folder")
    if not folder.is_dir():
        raise _refusal(path, what, f"there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise _refusal(path, what, f"you may not write into {folder}")


def write_result(path: Path, what: str, value: dict[str, Any]) -> None:
    """Write a JSON object, in one step where ``path`` is a file or is to be one.

    What is neither, such as /dev/null or a pipe, is written to as it is: root could replace it. A link stays a link.

    Args:
        path: Where it goes.
        what: The result, for the sentence: "The plan".
        value: The object.

    Raises:
        PreflightError: It cannot be written.
    """
    check_writable(path, what)
    try:
        if path.exists() and not path.is_file():
            path.write_text(json.dumps(value, indent=1) + "\n")
        else:
            write_json(path.resolve(), value)
    except OSError as error:
        raise _refusal(path, what, error.strerror or str(error)) from error


def _refusal(path: Path, what: str, why: str) -> PreflightError:
    return PreflightError(f"{what} cannot be written to {path}: {why}.", "Name a file in a folder with -o FILE.")
