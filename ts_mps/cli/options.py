"""Options that several verbs share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from ts_mps.errors import UsageError
from ts_mps.paths import Home, resolve_home


class VerbParser(argparse.ArgumentParser):
    """argparse whose complaints are our errors."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"{self.prog}: {message}.", f"See: {self.prog} --help")


def instance_parser(verb: str, description: str, environ: Mapping[str, str] = os.environ) -> VerbParser:
    """A parser with ``--name``, ``--runtime-dir`` and ``--json``."""
    parser = VerbParser(prog=f"ts-mps {verb}", description=description)
    parser.add_argument(
        "--name",
        default=environ.get("TS_MPS_NAME", "default"),
        help="the instance's name (default: default) [TS_MPS_NAME]",
    )
    parser.add_argument(
        "--runtime-dir",
        metavar="DIR",
        help="runtime folder (default: $XDG_RUNTIME_DIR/ts-mps, else /tmp/ts-mps-<uid>) [TS_MPS_HOME]",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser


def add_payload(add: Callable[..., argparse.Action], files: str) -> None:
    """``--payload`` and ``--content-type``; ``files``: which files it takes and how they are sent, in a few words."""
    add(
        "--payload",
        metavar="FILE",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        help=f"what clients send as the body of a request{files}",
    )
    add("--content-type", metavar="T", help="their Content-Type (default: application/json for .json, else none)")


def home_of(arguments: argparse.Namespace) -> Home:
    """The runtime folder that the options name; it is not made."""
    return resolve_home(arguments.runtime_dir, os.environ, create=False)
