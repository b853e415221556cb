"""Checks of the machine: Python, Java, the runtime folder, limits of the operating system."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from ts_mps.doctor.findings import Findings
from ts_mps.errors import PreflightError, TsMpsError
from ts_mps.paths import Home, resolve_home
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.java import find_java

#: NVIDIA's MPS guide advises so many file descriptors ("ulimit -n"); with fewer a server may fail to make its segments.
FILES_ADVISED = 16384
#: Pinned host memory of MPS clients is limited by /dev/shm (MPS guide, "Limitations"); containers start with 64 MiB.
SHM_ADVISED = 1 << 30
#: TorchServe's last release, the only one whose worker entry is known.
TORCHSERVE = "0.12.0"
#: Module -> package.
_PACKAGES = {"yaml": "pyyaml", "numpy": "numpy", "torch": "torch"}
_ELSEWHERE = "Choose another with --runtime-dir or TS_MPS_HOME."


def check_python(found: Findings) -> None:
    """TorchServe's version, and what its workers need without declaring it."""
    try:
        installed = version("torchserve")
    except PackageNotFoundError:
        installed = "no distribution"
    if installed == TORCHSERVE:
        found.ok("torchserve", f"TorchServe {installed}.")
    else:
        found.warn("torchserve", f"TorchServe is {installed}.", f"pip install torchserve=={TORCHSERVE}")
    missing = [package for name, package in _PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        what = f"TorchServe's workers need {', '.join(missing)}, which this Python ({sys.executable}) does not have."
        found.error("packages", TsMpsError(what, f"{sys.executable} -m pip install {' '.join(missing)}"))
    else:
        found.ok("packages", "What TorchServe's workers need without declaring it (pyyaml, numpy, torch) is there.")


def check_java(found: Findings, environ: Mapping[str, str]) -> None:
    """The Java that a start would use."""
    found.attempt(
        "java", lambda: find_java(environ), lambda java: f"Java {java.version} from {java.source}: {java.path}"
    )


def check_home(found: Findings, arguments: StartArguments, environ: Mapping[str, str]) -> Home | None:
    """Whether the runtime folder is there and safe, or can be made."""

    def look() -> Home:
        try:
            home = resolve_home(arguments.runtime_dir, environ, create=False)
        except OSError as error:
            raise PreflightError(
                f"The runtime folder cannot be looked at: {error.filename}: {error.strerror}.", _ELSEWHERE
            ) from error
        nearest = next(path for path in (home.root, *home.root.parents) if path.exists())
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PreflightError(f"The runtime folder {home.root}: {nearest} is not writable for you.", _ELSEWHERE)
        return home

    return found.attempt(
        "runtime folder",
        look,
        lambda home: (
            f"{home.root}: short enough for MPS sockets, and "
            + ("yours alone." if home.root.exists() else "made by the first start.")
        ),
    )


def check_limits(found: Findings, environ: Mapping[str, str]) -> None:
    """Limits that MPS runs into under load."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FILES_ADVISED:
        found.warn("open files", f"ulimit -n is {files}.", f"NVIDIA advises {FILES_ADVISED}: ulimit -n {FILES_ADVISED}")
    else:
        found.ok("open files", f"ulimit -n is {files}.")
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        size = 0
    if size < SHM_ADVISED:
        found.warn(
            "/dev/shm",
            f"/dev/shm has {size >> 20} MiB, and the pinned host memory of MPS clients must fit into it.",
            "In containers: --shm-size=1g (docker), or an emptyDir of medium Memory at /dev/shm (Kubernetes).",
        )
    else:
        found.ok("/dev/shm", f"/dev/shm has {size >> 20} MiB.")
    if "OMP_NUM_THREADS" in environ:
        found.warn(
            "threads",
            f"OMP_NUM_THREADS={environ['OMP_NUM_THREADS']} is set, so every worker uses it.",
            "Unset it to have the cores divided among the workers.",
        )
    else:
        found.ok("threads", "OMP_NUM_THREADS is not set: the cores are divided among the workers.")
