"""One control daemon per GPU, shared by the instances that hold a lease on it; the last one out stops it.

Whoever starts or stops the daemon holds the flock ``GpuPaths.lock``. A lease is a file in ``GpuPaths.leases`` held by
flock, so the lease of a guardian that was killed is free at once, and what it left is found by the next one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from ts_mps.errors import MpsError
from ts_mps.files import last_lines, locked
from ts_mps.gpu.caps import client_cap, max_connections
from ts_mps.gpu.compute_mode import restore, set_exclusive
from ts_mps.gpu.inventory import Gpu
from ts_mps.mps import process
from ts_mps.mps.control import LOG_VARIABLE, Control, DaemonTimeout, binary_version, require_binary
from ts_mps.mps.leases import HeldLease, holders
from ts_mps.paths import GpuPaths

#: Seconds for a daemon and its server to be ready; an H200 takes 0.3, a GPU without persistence mode several.
START_S = 20.0
#: Seconds to wait for a GPU's lock. Who holds it starts or stops a daemon; one that is stopped or stuck in the driver
#: must not hold up other instances, nor their stop, for ever.
LOCK_S = 60.0


@dataclass(frozen=True)
class Daemon:
    """A control daemon that clients on one GPU connect to.

    Args:
        uuid: The GPU.
        pipe: CUDA_MPS_PIPE_DIRECTORY.
        log: CUDA_MPS_LOG_DIRECTORY.
        pid: Its process id; None if it is out of sight, in another PID namespace.
        version: The control program's version, 13000 for CUDA 13.0; 0 if unknown.
        cap: The most clients on this GPU.
        adopted: Somebody else started it, so it is never stopped.
    """

    uuid: str
    pipe: str
    log: str
    pid: int | None
    version: int
    cap: int
    adopted: bool


class Lease:
    """An instance's hold on a GPU's daemon. Made by :func:`acquire` or :func:`adopt`; let go with :meth:`release`."""

    def __init__(self, daemon: Daemon, gpu: Gpu, environ: Mapping[str, str], held: HeldLease | None) -> None:
        self.daemon = daemon
        self._gpu = gpu
        self._environ = environ
        self._held = held

    @property
    def pipe(self) -> Path:
        """CUDA_MPS_PIPE_DIRECTORY of the daemon."""
        return Path(self.daemon.pipe)

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment that the control program is run in."""
        return self._environ

    def ensure(self, timeout_s: float = START_S, answer_s: float = START_S) -> Daemon:
        """Bring the daemon back if it is gone or hangs; another instance may have done so already.

        Args:
            timeout_s: Seconds for each step of a start.
            answer_s: Seconds for an answer of the daemon that is there; without one it is replaced.

        Raises:
            MpsError: It does not come up; the lease is kept and the call may be tried again. An adopted daemon is
                not ours to start.
        """
        if self._held is None:
            self.daemon = adopt(Path(self.daemon.pipe), self._gpu, environ=self._environ).daemon
            return self.daemon
        paths = self._held.paths
        with locked(paths.lock, LOCK_S):
            if not self._held.held:
                # A repair that waited for the lock while its instance was taken down: nobody would end that daemon.
                raise MpsError(f"The lease on the MPS daemon of {self.daemon.uuid} was let go meanwhile.")
            try:
                process.bring_up(
                    paths,
                    self._gpu.uuid,
                    environ=self._environ,
                    timeout_s=timeout_s,
                    replace_hung=True,
                    answer_s=answer_s,
                    faulty_will_do=True,
                )
            except (MpsError, OSError) as error:
                raise _not_started(self._gpu, paths, error) from error
        self.daemon = replace(self.daemon, pid=_pid(paths.pipe))
        return self.daemon

    def release(self, timeout_s: float = 10.0) -> str:
        """Let go; the last one out stops the daemon and puts the compute mode back. A second call does nothing.

        Args:
            timeout_s: Seconds to wait for clients to disconnect.

        Returns:
            A sentence that says what was done.

        Raises:
            MpsError: The daemon cannot be ended, or the compute mode cannot be put back.
        """
        if self._held is None:
            return f"The MPS daemon at {self.daemon.pipe} was started by somebody else and runs on."
        paths = self._held.paths
        with locked(paths.lock, LOCK_S):
            self._held.drop()
            return _stop_if_last(self.daemon.uuid, paths, self._environ, timeout_s)


def acquire(
    gpu: Gpu,
    paths: GpuPaths,
    instance: str,
    *,
    environ: Mapping[str, str],
    exclusive: bool = False,
    timeout_s: float = START_S,
    taken_over: bool = False,
) -> Lease:
    """Get a lease on the GPU's daemon, with its server ACTIVE; start both if they do not run.

    Args:
        gpu: The GPU.
        paths: Its files.
        instance: Who asks; an instance has at most one lease on a GPU.
        environ: What the daemon's environment is made from.
        exclusive: Set the GPU to EXCLUSIVE_PROCESS first.
        timeout_s: Seconds until the server must be ACTIVE.
        taken_over: The instance's workers serve already. A server in FAULT then will do: its clients are to be ended.

    Raises:
        MpsError: MPS could not be started; what was started is stopped again.
    """
    version = binary_version(require_binary(environ))
    try:
        paths.leases.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(paths.lock, LOCK_S):
            held = HeldLease(paths, instance)
            try:
                if exclusive:
                    set_exclusive(gpu, paths)
                alone = not holders(paths, but=instance)
                process.bring_up(
                    paths,
                    gpu.uuid,
                    environ=environ,
                    timeout_s=timeout_s,
                    replace_hung=alone,
                    faulty_will_do=taken_over,
                )
            except BaseException:
                held.drop()
                if not holders(paths):
                    with suppress(MpsError):  # the cause matters more; the file stays for the next stop
                        restore(gpu.uuid, paths)
                raise
    except (MpsError, OSError) as error:
        raise _not_started(gpu, paths, error) from error
    daemon = _describe(gpu, paths.pipe, str(paths.log), version, environ, adopted=False)
    return Lease(daemon, gpu, environ, held)


def adopt(pipe: Path, gpu: Gpu, *, environ: Mapping[str, str]) -> Lease:
    """Use a daemon that somebody else started at the user's CUDA_MPS_PIPE_DIRECTORY; it is never stopped.

    Raises:
        DaemonNotFound: None listens there.
        MpsError: It does not answer, or does not serve this GPU.
    """
    control = Control(pipe, environ=environ)
    control.servers()
    process.check_serves(control, gpu.uuid)
    version = binary_version(require_binary(environ))
    log = environ.get(LOG_VARIABLE, "/var/log/nvidia-mps")
    return Lease(_describe(gpu, pipe, log, version, environ, adopted=True), gpu, environ, None)


def release_left_behind(
    paths: GpuPaths, uuid: str, instance: str, timeout_s: float = 10.0, *, environ: Mapping[str, str] | None = None
) -> str:
    """What :meth:`Lease.release` does, for an instance whose guardian was killed.

    Returns:
        A sentence that says what was done.

    Raises:
        MpsError: The instance's guardian lives, the daemon cannot be ended, or the compute mode cannot be put back.
    """
    if not paths.leases.is_dir():
        return f"{uuid} has no MPS daemon of ts-mps."
    with locked(paths.lock, LOCK_S):
        HeldLease(paths, instance).drop()
        return _stop_if_last(uuid, paths, os.environ if environ is None else environ, timeout_s)


def daemon_alive(daemon: Daemon) -> bool:
    """Whether the daemon's process lives (a zombie, or another process with its pid, does not count).

    Reads /proc only; a daemon that is out of sight is asked instead.
    """
    if daemon.pid is None:
        return Control(Path(daemon.pipe)).answers()
    return _pid(Path(daemon.pipe)) == daemon.pid


def terminate_and_kill(
    pipe: Path, pids: Iterable[int], *, environ: Mapping[str, str] | None = None, timeout_s: float = 10.0
) -> None:
    """End processes with SIGKILL, those that are clients of the daemon at ``pipe`` after ``terminate_client``.

    MPS does not support that a client is killed with work in flight; once terminated it can be. Each gets
    ``terminate_client`` once and is killed right after, because a second one would block the daemon while it lives.
    Where the daemon does not answer within ``timeout_s``, its clients are killed all the same.
    """
    control = Control(pipe, environ=environ, timeout=timeout_s)
    attached: dict[int, int] = {}
    targets = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            targets.append(psutil.Process(pid))
    with suppress(MpsError):
        attached = {pid: server for server in control.servers() for pid in control.clients(server)}
    for target in targets:
        try:
            if target.pid in attached:
                control.terminate_client(attached[target.pid], target.pid)
        except DaemonTimeout:
            attached = {}  # it hangs: asking on would cost a timeout per client
        except MpsError:
            pass  # it disconnected in between
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # another user's; the others are to be ended still
            target.kill()


def _stop_if_last(uuid: str, paths: GpuPaths, environ: Mapping[str, str], timeout_s: float) -> str:
    """Stop the daemon unless somebody still uses it. The caller holds ``paths.lock`` and has dropped its lease."""
    others = holders(paths)
    if others:
        return f"The MPS daemon of {uuid} runs on for the instances: {', '.join(others)}."
    stopped, what = process.shut_down(paths.pipe, environ=environ, timeout_s=timeout_s)
    if stopped:
        restore(uuid, paths)
    return f"The MPS daemon of {uuid} {what}."


def _pid(pipe: Path) -> int | None:
    found = process.find(pipe)
    return None if found is None else found.pid


def _describe(gpu: Gpu, pipe: Path, log: str, version: int, environ: Mapping[str, str], *, adopted: bool) -> Daemon:
    cap = client_cap(gpu.compute_capability, version, max_connections(environ))
    return Daemon(gpu.uuid, str(pipe), log, _pid(pipe), version, cap, adopted)


def _not_started(gpu: Gpu, paths: GpuPaths, error: MpsError | OSError) -> MpsError:
    """The whole sentence: which GPU, why, and the last lines of the daemon's logs."""
    if isinstance(error, MpsError):
        why, remedy, details = error.what, error.remedy, error.details
    else:
        why, remedy, details = f"{error.strerror} ({error.filename}).", "", ""
    logs = [last_lines(paths.log / name) for name in ("control.log", "server.log")]
    return MpsError(
        f"MPS could not be started on GPU {gpu.index} ({gpu.uuid}): {why}",
        remedy or f"The daemon's logs are in {paths.log}; --mps off starts without it.",
        "\n".join(text for text in (details, *logs) if text),
    )
