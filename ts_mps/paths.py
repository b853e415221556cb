"""The one owner of every path that ts-mps makes at run time.

::

    <home>/                       mode 0700, ours, no symlink
      gpus/<GPU UUID>/            shared by all instances on that GPU: the daemon's pipe and log folders, seats, leases
      caps.json                   client caps that were measured
      caps/<UUID>/                the daemon that measures one; gone afterwards
      instances/<name>/           one per ``--name``: plan, state, effective config, worker entry, slots, logs
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ts_mps.errors import PreflightError, UsageError

#: Usable bytes of ``sockaddr_un.sun_path`` on Linux (108 with the closing NUL, unix(7)).
SUN_PATH_BYTES = 107
#: The longest name that the control daemon binds in its pipe folder (seen on binary version 13000).
LONGEST_SOCKET = "control_privileged"
#: NVML writes a GPU's UUID as "GPU-" and 36 characters.
_UUID_CHARACTERS = 40
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


@dataclass(frozen=True)
class GpuPaths:
    """Files of one GPU, shared by every instance that uses it."""

    root: Path

    @property
    def pipe(self) -> Path:
        """CUDA_MPS_PIPE_DIRECTORY of the GPU's daemon."""
        return self.root / "pipe"

    @property
    def log(self) -> Path:
        """CUDA_MPS_LOG_DIRECTORY of the GPU's daemon: control.log and server.log."""
        return self.root / "log"

    @property
    def lock(self) -> Path:
        """Held (flock) while the daemon is started or stopped."""
        return self.root / "lock"

    @property
    def seats(self) -> Path:
        """One file per client that the cap allows; a worker holds one by flock while it lives."""
        return self.root / "seats"

    @property
    def leases(self) -> Path:
        """One file per instance; its guardian holds it by flock. The last one out stops the daemon."""
        return self.root / "leases"

    @property
    def compute_mode(self) -> Path:
        """The compute mode to put back, written before ``--exclusive`` changes it."""
        return self.root / "compute_mode.json"


@dataclass(frozen=True)
class InstancePaths:
    """Files of one instance."""

    root: Path

    @property
    def name(self) -> str:
        """The instance's ``--name``."""
        return self.root.name

    @property
    def guardian_lock(self) -> Path:
        """Held (flock) by the guardian while it lives; holds its pid."""
        return self.root / "guardian.lock"

    @property
    def request(self) -> Path:
        """What ``ts-mps start`` asked for, read by the guardian."""
        return self.root / "request.json"

    @property
    def plan(self) -> Path:
        """The plan that the slots are made from."""
        return self.root / "plan.json"

    @property
    def state(self) -> Path:
        """What is running, written by the guardian at every change."""
        return self.root / "state.json"

    @property
    def stop_request(self) -> Path:
        """Drain time that ``ts-mps stop`` asks for, read by the guardian on SIGTERM."""
        return self.root / "stop.json"

    @property
    def changes(self) -> Path:
        """What verbs ask the running guardian to change, and its answers."""
        return self.root / "changes"

    @property
    def config(self) -> Path:
        """The effective config.properties that TorchServe reads."""
        return self.root / "config.properties"

    @property
    def bin(self) -> Path:
        """Holds ``worker-python``, and ``python3`` for archives of runtime python3."""
        return self.root / "bin"

    @property
    def worker_python(self) -> Path:
        """What TorchServe gets as ``--python``."""
        return self.bin / "worker-python"

    @property
    def slots(self) -> Path:
        """One file per worker slot."""
        return self.root / "slots"

    @property
    def failures(self) -> Path:
        """One file per worker that did not load."""
        return self.root / "failures"

    @property
    def events(self) -> Path:
        """What happened, a line each."""
        return self.root / "events.jsonl"

    @property
    def watched(self) -> Path:
        """What the guardian saw at its last look."""
        return self.root / "watched.json"

    @property
    def reported(self) -> Path:
        """Which metrics TorchServe's frontend has been told."""
        return self.root / "reported.json"

    @property
    def no_mps(self) -> Path:
        """An empty folder: a process whose CUDA_MPS_PIPE_DIRECTORY it is runs without MPS."""
        return self.root / "no-mps"

    @property
    def console(self) -> Path:
        """Standard output and error of java when it runs in the background."""
        return self.root / "torchserve.out"

    @property
    def guardian_log(self) -> Path:
        """Standard error of a guardian in the background."""
        return self.root / "guardian.log"


@dataclass(frozen=True)
class Home:
    """The runtime folder."""

    root: Path

    def instance(self, name: str) -> InstancePaths:
        """Paths of the instance ``name``.

        Raises:
            UsageError: The name is empty, too long, or has characters that do not belong into a folder's name.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"'{name}' is not an instance name.",
                "Use 1 to 32 letters, digits, '.', '_' or '-', starting with a letter or digit.",
            )
        return InstancePaths(self.root / "instances" / name)

    def instances(self) -> list[InstancePaths]:
        """Every instance that has a folder, running or not."""
        folder = self.root / "instances"
        return [InstancePaths(path) for path in sorted(folder.glob("*")) if path.is_dir()]

    def gpu(self, uuid: str) -> GpuPaths:
        """Paths of the GPU with this UUID."""
        return GpuPaths(self.root / "gpus" / uuid)

    @property
    def caps(self) -> Path:
        """Client caps that were measured, by driver and GPU."""
        return self.root / "caps.json"

    def probe(self, uuid: str) -> GpuPaths:
        """Paths of the daemon that measures this GPU's client cap; no longer than those of :meth:`gpu`."""
        return GpuPaths(self.root / "caps" / uuid)


def default_root(environ: Mapping[str, str]) -> Path:
    """``$TS_MPS_HOME``, else ``$XDG_RUNTIME_DIR/ts-mps``, else ``/tmp/ts-mps-<uid>``."""
    if environ.get("TS_MPS_HOME"):
        return Path(environ["TS_MPS_HOME"])
    if environ.get("XDG_RUNTIME_DIR"):
        return Path(environ["XDG_RUNTIME_DIR"]) / "ts-mps"
    return Path(f"/tmp/ts-mps-{os.getuid()}")


def resolve_home(override: str | None, environ: Mapping[str, str], *, create: bool = True) -> Home:
    """Find the runtime folder, make it if asked to, and refuse one that is not safe to use.

    Args:
        override: The value of ``--runtime-dir``, or None.
        environ: Where TS_MPS_HOME and XDG_RUNTIME_DIR are looked up.
        create: False for verbs that only look.

    Raises:
        PreflightError: The path is too long for a UNIX socket, a symlink, no folder, another user's, or cannot be
            made.
    """
    root = Path(os.path.abspath(override)) if override else default_root(environ).absolute()
    longest = len(os.fsencode(root)) + len("/gpus/") + _UUID_CHARACTERS + len(f"/pipe/{LONGEST_SOCKET}")
    if longest > SUN_PATH_BYTES:
        raise PreflightError(
            f"The runtime folder {root} is too long: an MPS socket in it would need {longest} bytes and "
            f"Linux allows {SUN_PATH_BYTES}.",
            f"Choose one that is at least {longest - SUN_PATH_BYTES} bytes shorter with --runtime-dir or TS_MPS_HOME.",
        )
    if create:
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise PreflightError(
                f"The runtime folder {root} cannot be made: {error.strerror}.",
                "Choose another with --runtime-dir or TS_MPS_HOME.",
            ) from error
    _check_owned(root)
    return Home(root)


def _check_owned(root: Path) -> None:
    """Refuse a folder through which another user could take over our sockets (the classic /tmp attack)."""
    try:
        status = os.lstat(root)
    except FileNotFoundError:
        return
    elsewhere = "Choose another with --runtime-dir or TS_MPS_HOME."
    if stat.S_ISLNK(status.st_mode):
        raise PreflightError(f"The runtime folder {root} is a symbolic link.", elsewhere)
    if not stat.S_ISDIR(status.st_mode):
        raise PreflightError(f"The runtime folder {root} is not a folder.", elsewhere)
    if status.st_uid != os.getuid():
        raise PreflightError(f"The runtime folder {root} belongs to user {status.st_uid}, not to you.", elsewhere)
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise PreflightError(
            f"The runtime folder {root} is open to other users (mode {stat.S_IMODE(status.st_mode):04o}).",
            f"Run: chmod 700 {root}",
        )
