"""How many clients an MPS server really takes: hold one context after the other until the driver refuses."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ts_mps.errors import MpsError, PreflightError
from ts_mps.files import is_locked, try_lock
from ts_mps.gpu.caps import cap_of, max_connections
from ts_mps.gpu.inventory import Gpu
from ts_mps.mps.control import PIPE_VARIABLE, Control
from ts_mps.mps.daemon import Lease, acquire, daemon_alive
from ts_mps.mps.leases import holders
from ts_mps.mps.search import HOLDER, Search
from ts_mps.paths import GpuPaths, Home

#: More clients than any server takes.
BOUND = 128
#: Limits of a worker's share do not belong to the question.
_SHARES = ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "CUDA_MPS_CLIENT_PRIORITY")


@dataclass(frozen=True)
class CapProbe:
    """What was found.

    Attributes:
        gpu: UUID of the GPU.
        name: Its product name.
        control_version: Binary version of the control program.
        connections: CUDA_DEVICE_MAX_CONNECTIONS of the clients.
        held: Clients that held a context at once.
        exact: Whether the next one was refused with error 808; else the cap is at least ``held``.
        why: What ended the search, a sentence.
        bytes_per_client: GPU memory that the first client took; 0 where NVML does not say.
        seconds: How long it took.
    """

    gpu: str
    name: str
    control_version: int
    connections: int
    held: int
    exact: bool
    why: str
    bytes_per_client: int
    seconds: float


def probe_cap(
    gpu: Gpu,
    home: Home,
    *,
    environ: Mapping[str, str],
    report: Callable[[str], None] = lambda text: None,
    bound: int = BOUND,
    command: Sequence[str] = HOLDER,
) -> CapProbe:
    """Start clients on a daemon of its own until one is refused; nothing is left of them or the daemon.

    No instance can start or stop on the GPU meanwhile, because its lock is held.

    Args:
        gpu: The GPU.
        home: The runtime folder.
        environ: What the environment of daemon and clients is made from.
        report: Is told how far it is.
        bound: The most clients that are tried.
        command: What is run for each client; it speaks as :mod:`ts_mps.mps.holder` does.

    Raises:
        PreflightError: MPS serves on the GPU, it is in MIG mode, or it has too little free memory.
        MpsError: The daemon does not start, a client does not come to be one, or is refused with another error.
    """
    began = time.monotonic()
    _check_strangers(gpu, environ)
    ours = {name: value for name, value in environ.items() if name not in _SHARES}
    with _alone(gpu, home.gpu(gpu.uuid)), _own_daemon(gpu, home.probe(gpu.uuid), ours) as lease:
        version, connections = lease.daemon.version, max_connections(environ)
        search = Search(
            gpu,
            Control(Path(lease.daemon.pipe), environ=ours),
            cap_of(gpu, version, connections).limit,
            {**ours, "CUDA_VISIBLE_DEVICES": gpu.uuid, PIPE_VARIABLE: lease.daemon.pipe},
            command,
            report,
        )
        found = search.run(bound)
    return CapProbe(
        gpu=gpu.uuid,
        name=gpu.name,
        control_version=version,
        connections=connections,
        held=found.held,
        exact=found.exact,
        why=found.why,
        bytes_per_client=found.bytes_per_client,
        seconds=time.monotonic() - began,
    )


@contextmanager
def _own_daemon(gpu: Gpu, paths: GpuPaths, environ: Mapping[str, str]) -> Iterator[Lease]:
    """A daemon that only the probe uses; it and its folder are gone afterwards.

    Raises:
        MpsError: It does not start, or does not end; its folder then stays for the next probe to find it.
    """
    try:
        lease = acquire(gpu, paths, "probe", environ=environ)
    except BaseException:
        _remove(paths)
        raise
    try:
        yield lease
    finally:
        said = lease.release()
        if daemon_alive(lease.daemon):
            raise MpsError(said, "Run the probe again, which ends it.")
        _remove(paths)


def _remove(paths: GpuPaths) -> None:
    shutil.rmtree(paths.root, ignore_errors=True)
    with suppress(OSError):  # another GPU's probe may be there
        paths.root.parent.rmdir()


def _check_strangers(gpu: Gpu, environ: Mapping[str, str]) -> None:
    """MIG, and a daemon of somebody else's at CUDA_MPS_PIPE_DIRECTORY."""
    if gpu.mig_enabled:
        raise PreflightError(
            f"GPU {gpu.index} ({gpu.uuid}) is in MIG mode, where the cap is not probed.",
            "Choose another GPU with --gpu; the plan takes the documented part of the cap for a MIG instance.",
        )
    named = environ.get(PIPE_VARIABLE)
    if named:
        control = Control(Path(named), environ=environ)
        if control.answers() and gpu.uuid in (control.devices() or (gpu.uuid,)):
            raise PreflightError(
                f"An MPS daemon answers at {PIPE_VARIABLE}={named} and serves GPU {gpu.index} ({gpu.uuid}); a probe "
                "would take the GPU from its clients.",
                f"Stop that daemon first; or unset {PIPE_VARIABLE}, if nothing of it is in use.",
            )


@contextmanager
def _alone(gpu: Gpu, serving: GpuPaths) -> Iterator[None]:
    """Hold the GPU's lock, with no instance on it."""
    serving.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = try_lock(serving.lock, attempts=5)
    if lock is None:
        raise PreflightError(
            f"An instance is starting or stopping on GPU {gpu.index} ({gpu.uuid}), or its cap is being probed.",
            "Wait for it, then probe again.",
        )
    try:
        names = holders(serving)
        seats = [path for path in serving.seats.glob("*") if is_locked(path)]
        if names or seats:
            who = f"Instance {', '.join(names)} serves" if names else f"{len(seats)} workers of ts-mps serve"
            raise PreflightError(
                f"{who} on GPU {gpu.index} ({gpu.uuid}); the probe would take all of its clients.",
                "Stop it first (ts-mps stop --name NAME), or probe another GPU with --gpu.",
            )
        yield
    finally:
        os.close(lock)
