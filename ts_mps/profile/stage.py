"""What workers are measured in: a runtime folder of their own, the unpacked archive, with MPS a daemon of the GPU."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ts_mps.errors import MpsError, PreflightError
from ts_mps.gpu.inventory import Gpu
from ts_mps.mps.control import Control
from ts_mps.mps.daemon import Lease, acquire, adopt
from ts_mps.mps.limits import CLIENT_VARIABLES
from ts_mps.paths import Home, resolve_home
from ts_mps.profile.interrupts import uninterrupted
from ts_mps.profile.job import Job
from ts_mps.torchserve.unpack import unpack

#: The name of the one instance, for its lease.
NAME = "profile"


@dataclass(frozen=True)
class Stage:
    """Where workers are started.

    Attributes:
        home: The runtime folder; nobody else uses it.
        folder: The unpacked archive.
        gpu: None for the CPU.
        pipe: CUDA_MPS_PIPE_DIRECTORY of the GPU's daemon; None without MPS.
        cap: MPS clients that the GPU takes; None without MPS.
        environ: What the workers' environment is made from.
    """

    home: Home
    folder: Path
    gpu: Gpu | None
    pipe: str | None
    cap: int | None
    environ: Mapping[str, str]


@contextmanager
def stage(job: Job, environ: Mapping[str, str]) -> Iterator[Stage]:
    """Set it up; whatever happens, it is gone afterwards: daemon, folders.

    Raises:
        PreflightError: A folder cannot be made, or the archive cannot be unpacked.
        MpsError: The daemon does not come up.
    """
    # A limit that the user's shell has set would be taken for the model's own speed.
    clean = {name: value for name, value in environ.items() if name not in CLIENT_VARIABLES}
    with ExitStack() as stack:
        # Not in TMPDIR, which may be too long for a socket's path.
        home = resolve_home(str(_scratch(stack, "ts-mps-profile-", "/tmp")), environ)
        folder = unpack(job.archive.path, _scratch(stack, "ts-mps-model-", None))
        pipe: str | None = None
        cap: int | None = None
        if job.gpu is not None and job.mps:
            lease = stack.enter_context(_daemon(job.gpu, home, job.adopted_pipe, clean))
            pipe, cap = lease.daemon.pipe, lease.daemon.cap
            home.gpu(job.gpu.uuid).seats.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield Stage(home, folder, job.gpu, pipe, cap, clean)


@contextmanager
def _daemon(gpu: Gpu, home: Home, adopted: Path | None, environ: Mapping[str, str]) -> Iterator[Lease]:
    if adopted is not None:
        yield adopt(adopted, gpu, environ=environ)
        return
    paths = home.gpu(gpu.uuid)
    lease = acquire(gpu, paths, NAME, environ=environ)
    try:
        yield lease
    finally:
        with uninterrupted():
            lease.release()
            # Its workers are gone, so a client that it still lists is no reason to leave it behind without its folder.
            control = Control(paths.pipe, environ=environ)
            if control.answers():
                with suppress(MpsError):
                    control.quit(1.0)


def _scratch(stack: ExitStack, prefix: str, where: str | None) -> Path:
    try:
        folder = tempfile.mkdtemp(prefix=prefix, dir=where)
    except OSError as error:
        raise PreflightError(
            f"No folder can be made in {where or tempfile.gettempdir()}: {error.strerror or error}."
        ) from error
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return Path(os.path.realpath(folder))
