"""The one way down, for a failed start, a stop, and what a killed guardian left behind.

Order: drain, then java, then what it left (workers, a collector of metrics), then the daemons, then the files. Each
step looks at what is there instead of trusting what was there, so it may be repeated.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from ts_mps.errors import TsMpsError
from ts_mps.guardian.drain import drain as drain_requests
from ts_mps.guardian.metrics import command as metrics_command
from ts_mps.guardian.state import GpuState, State
from ts_mps.mps.daemon import Lease, release_left_behind, terminate_and_kill
from ts_mps.paths import Home, InstancePaths
from ts_mps.processes import ProcessId, end, wait_gone, with_arguments
from ts_mps.torchserve import pid_file
from ts_mps.worker_records import busy, sockets, workers

#: Java's shutdown hook closes its listeners, waits about 2 s for quiet, then kills its workers (ModelServer.stop).
JAVA_SECONDS = 30.0
#: A worker that lost its frontend leaves by itself once its batch is done.
WORKER_SECONDS = 10.0
#: A collector of metrics that TorchServe started at its very end uses our files until it is done.
COLLECTOR_SECONDS = 3.0
#: How long a daemon may take to answer before its clients are killed without it.
ANSWER_SECONDS = 10.0
#: How long ``quit`` may wait for clients before the server is forced down.
QUIT_SECONDS = 10.0
#: How long the guardian waits for the change and the repairs that it has under way, before anything is taken down.
CLOSING_SECONDS = 15.0

Report = Callable[[str], None]


def longest(drain: float) -> float:
    """Seconds after which a guardian that was told to stop has ended, if nothing hangs."""
    parts = (CLOSING_SECONDS, drain, JAVA_SECONDS, 2 * WORKER_SECONDS, COLLECTOR_SECONDS, 2 * QUIT_SECONDS)
    return sum(parts)


def take_down(
    home: Home,
    paths: InstancePaths,
    state: State,
    leases: Mapping[str, Lease],
    *,
    drain: float,
    report: Report,
    hurry: Callable[[], bool] = lambda: False,
) -> tuple[str, ...]:
    """End everything that belongs to the instance.

    Args:
        home: The runtime folder.
        paths: The instance.
        state: What was running when somebody last looked.
        leases: UUID -> the lease on its daemon, if this process holds it.
        drain: Seconds for requests that TorchServe has accepted.
        report: Told each step, in a few words.
        hurry: Asked while draining; True ends the drain.

    Returns:
        What could not be ended, one sentence each; empty when nothing is left.
    """
    left: list[str] = []
    _note(state.to("stopping"), paths)
    if state.java is not None and state.java.alive():
        drain_requests(paths, state, drain, report, hurry)
        _end_busy_clients(paths, state)
        report("stopping TorchServe")
        end(state.java, JAVA_SECONDS)
    end_workers(home, paths, state, report)
    wait_gone(with_arguments(*metrics_command(paths, ())), COLLECTOR_SECONDS)
    for gpu in reversed(state.gpus):
        left += _release(home, paths, gpu, leases.get(gpu.uuid), report)
    left += _survivors(home, paths, state)
    _remove_files(paths, state)
    _note(replace(state.to("failed" if state.error else "stopped"), left=tuple(left)), paths)
    return tuple(left)


def _note(state: State, paths: InstancePaths) -> None:
    """Save the state if that can be done: a full disk must not keep anything running."""
    with suppress(OSError):
        state.save(paths)


def _end_busy_clients(paths: InstancePaths, state: State) -> None:
    """A client that is killed inside a kernel may take the server with it: it is terminated through MPS first.

    Busy is who is inside a batch, and who is still loading: a handler may well warm up its model.
    """
    at_work = {worker.pid for worker in busy(paths)}
    for gpu in state.gpus:
        if gpu.pipe is not None:
            pids = tuple(
                worker.pid
                for worker in workers(paths)
                if worker.slot.gpu == gpu.uuid and (worker.pid in at_work or worker.state == "loading")
            )
            if pids:
                terminate_and_kill(Path(gpu.pipe), pids)


def worker_processes(home: Home, paths: InstancePaths) -> tuple[ProcessId, ...]:
    """Every worker process of the instance, loaded or not, by its command line."""
    # One that TorchServe started a moment ago is still the script that becomes it.
    becoming = with_arguments("/bin/sh", str(paths.worker_python))
    return becoming + with_arguments("ts_mps.torchserve.worker", str(home.root), paths.name)


def end_workers(
    home: Home,
    paths: InstancePaths,
    state: State,
    report: Report,
    *,
    answer_s: float = ANSWER_SECONDS,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Wait for the workers that lost their frontend to leave by themselves; end those that do not.

    Args:
        home: The runtime folder.
        paths: The instance.
        state: What was running when somebody last looked.
        report: Told if some have to be ended.
        answer_s: Seconds for a daemon's answer.
        pause: Sleeps for so many seconds; called again and again, and between any two daemons.
    """
    left = wait_gone(worker_processes(home, paths), WORKER_SECONDS, pause)
    if not left:
        return
    report(f"ending {len(left)} worker(s) that outlived TorchServe")
    # Read while they live: one that TorchServe started at its very end has no slot that would name its socket.
    sockets_left = [socket for process in left if (socket := _socket(process)) is not None]
    for gpu in state.gpus:
        mine = {worker.pid for worker in workers(paths) if worker.slot.gpu == gpu.uuid}
        clients = tuple(process.pid for process in left if process.pid in mine)
        if gpu.pipe is not None and clients:
            pause(0.0)
            terminate_and_kill(Path(gpu.pipe), clients, timeout_s=answer_s)
    for process in left:
        process.send(signal.SIGKILL)
    wait_gone(left, WORKER_SECONDS, pause)
    _remove_sockets(sockets_left)


def _socket(worker: ProcessId) -> Path | None:
    """TorchServe's socket to a worker, by its command line."""
    with suppress(psutil.Error, ValueError, IndexError):
        words = psutil.Process(worker.pid).cmdline()
        return Path(words[words.index("--sock-name") + 1])
    return None


def _remove_sockets(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_socket():
            path.unlink(missing_ok=True)


def _release(home: Home, paths: InstancePaths, gpu: GpuState, lease: Lease | None, report: Report) -> list[str]:
    if gpu.pipe is None or gpu.adopted:
        if lease is not None:
            lease.release(QUIT_SECONDS)
        return []
    try:
        if lease is not None:
            report(f"GPU {gpu.index}: {lease.release(QUIT_SECONDS)}")
        else:
            done = release_left_behind(home.gpu(gpu.uuid), gpu.uuid, paths.name, QUIT_SECONDS)
            report(f"GPU {gpu.index}: {done}")
    except (TsMpsError, OSError) as error:
        return [str(error)]
    return []


def _survivors(home: Home, paths: InstancePaths, state: State) -> list[str]:
    left = [f"Worker process {process.pid} is still there." for process in worker_processes(home, paths)]
    if state.java is not None and state.java.alive():
        left.append(f"TorchServe's java process {state.java.pid} is still there.")
    return left


def _remove_files(paths: InstancePaths, state: State) -> None:
    """Slots, sockets and TorchServe's pid and key files; logs, plan and state stay for whoever asks what happened."""
    _remove_sockets(sockets(paths))
    for folder in (paths.slots, paths.bin, paths.no_mps):
        shutil.rmtree(folder, ignore_errors=True)
    paths.stop_request.unlink(missing_ok=True)
    if state.java is not None:
        pid_file.remove(Path(state.pid_file), state.java.pid)
        if state.endpoints.key_file is not None:
            # As `torchserve --stop` does: the keys died with the server.
            Path(state.endpoints.key_file).unlink(missing_ok=True)
