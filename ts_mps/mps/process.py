"""The control daemon as a process: bring it up, recognise it, end it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path

import psutil

from ts_mps.errors import MpsError
from ts_mps.mps.control import (
    BINARY,
    LOG_VARIABLE,
    PIPE_VARIABLE,
    PROTOCOL,
    Control,
    DaemonNotFound,
    DaemonTimeout,
    UnexpectedAnswer,
    require_binary,
)
from ts_mps.mps.limits import CLIENT_VARIABLES
from ts_mps.paths import GpuPaths

#: Where the daemon listens if nobody says otherwise (NVIDIA MPS guide, "Environment variables").
_DEFAULT_PIPE = "/tmp/nvidia-mps"
_PID_FILE = "nvidia-cuda-mps-control.pid"
#: Seconds for a daemon without clients to go after ``quit``; seen: 0.07.
_QUIT_S = 5.0
#: Seconds for a process to go after SIGKILL; the driver may have a context to tear down.
_KILL_S = 5.0


def bring_up(
    paths: GpuPaths,
    uuid: str,
    *,
    environ: Mapping[str, str],
    timeout_s: float,
    replace_hung: bool,
    answer_s: float | None = None,
    faulty_will_do: bool = False,
) -> None:
    """See to it that a daemon for the GPU answers at its pipe folder and its server is ACTIVE.

    One that answers already is shared. One that was started here and fails is ended again.

    Args:
        paths: Files of the GPU; the caller holds ``paths.lock``.
        uuid: The only GPU that the daemon serves.
        environ: What its environment is made from.
        timeout_s: Seconds for each step: a daemon that answers, one that listens, a server that is ACTIVE.
        replace_hung: Kill a daemon that does not answer, and start anew.
        answer_s: Seconds for the first answer of a daemon that is there; None for ``timeout_s``.
        faulty_will_do: A server in FAULT counts as ACTIVE. It stays so until its last client has exited, so whoever is
            to end its clients must not wait for it.

    Raises:
        MpsError: It does not come up.
        OSError: A folder cannot be made.
    """
    pipe = paths.pipe
    control = Control(pipe, environ=environ, timeout=timeout_s)
    try:
        Control(pipe, environ=environ, timeout=timeout_s if answer_s is None else answer_s).servers()
        shared = True
    except DaemonNotFound:
        shared = False
    except DaemonTimeout:
        if not replace_hung:
            raise
        shared = False
    try:
        if not shared:
            _end(_family(find(pipe)), grace_s=0)
            _start(pipe, paths.log, uuid, environ=environ, timeout_s=timeout_s)
        check_serves(control, uuid)
        _start_server(control, timeout_s, {"ACTIVE", "FAULT"} if faulty_will_do else {"ACTIVE"})
    except BaseException:
        if not shared:
            with suppress(MpsError):  # the cause matters more
                _end(_family(find(pipe)), grace_s=0)
            shutil.rmtree(pipe, ignore_errors=True)
        raise


def shut_down(pipe: Path, *, environ: Mapping[str, str], timeout_s: float) -> tuple[bool, str]:
    """End the daemon of a pipe folder, if it has no clients, and clear the folder.

    Args:
        pipe: CUDA_MPS_PIPE_DIRECTORY.
        environ: Environment of the front-end.
        timeout_s: Seconds to wait for clients: the server notices an exit a little later.

    Returns:
        Whether the daemon is gone, and a predicate for a sentence that says what became of it.

    Raises:
        MpsError: It cannot be ended, or its answer is unknown.
    """
    control = Control(pipe, environ=environ)
    processes = _family(find(pipe))
    deadline = time.monotonic() + timeout_s
    try:
        while clients := control.all_clients():
            if time.monotonic() >= deadline:
                return False, f"runs on for its clients: {', '.join(map(str, clients))}"
            time.sleep(0.05)
        with suppress(UnexpectedAnswer):  # a quit that was not graceful has a status of its own; see what is left
            control.quit(timeout_s)
        what, grace_s = "was stopped", _QUIT_S
    except DaemonNotFound:
        what, grace_s = "had ended before", 0.0
    except DaemonTimeout:
        what, grace_s = "did not answer and was killed", 0.0
    _end(processes, grace_s)
    shutil.rmtree(pipe, ignore_errors=True)
    return True, what


def check_serves(control: Control, uuid: str) -> None:
    """Make sure that the daemon serves the GPU, as far as it can say.

    Raises:
        MpsError: It serves others only, or does not answer.
    """
    devices = control.devices()
    if devices and uuid not in devices:
        raise MpsError(
            f"The MPS daemon at {control.pipe} serves {', '.join(devices)} and not {uuid}.",
            "Set CUDA_VISIBLE_DEVICES to a GPU that it serves, or unset CUDA_MPS_PIPE_DIRECTORY.",
        )


def _start(pipe: Path, log: Path, uuid: str, *, environ: Mapping[str, str], timeout_s: float) -> None:
    """Run ``nvidia-cuda-mps-control -d`` in a fresh pipe folder; it returns when the daemon listens."""
    shutil.rmtree(pipe, ignore_errors=True)
    for folder in (pipe, log):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ours = {PIPE_VARIABLE: str(pipe), LOG_VARIABLE: str(log), "CUDA_VISIBLE_DEVICES": uuid, **PROTOCOL}
    binary = require_binary(environ)
    # The daemon outlives and outranks the instance that starts it: one user's limits would bound everybody's workers.
    theirs = {name: value for name, value in environ.items() if name not in CLIENT_VARIABLES}
    # A file and not a pipe: a daemon that kept our pipe open would hold us here for its whole life.
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                [binary, "-d"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**theirs, **ours},
                timeout=timeout_s,
                start_new_session=True,  # Ctrl-C in a terminal is for the guardian alone
            )
        except subprocess.TimeoutExpired as error:
            raise MpsError(f"'{binary} -d' did not come to listen within {timeout_s:g} s.") from error
        if done.returncode != 0:
            output.seek(0)
            raise MpsError(
                f"'{binary} -d' ended with status {done.returncode}.",
                details=output.read().decode(errors="replace").strip(),
            )


def _start_server(control: Control, timeout_s: float, wanted: Set[str]) -> None:
    """Have the server ready before the first client: a client that meets a starting server may be refused (807).

    Args:
        control: Its daemon.
        timeout_s: Seconds to wait.
        wanted: States that will do.
    """
    deadline = time.monotonic() + timeout_s
    control.start_server(os.getuid())
    while wanted.isdisjoint(states := [control.server_status(server) for server in control.servers()]):
        if time.monotonic() >= deadline:
            state = ", ".join(state or "gone" for state in states) or "none"
            raise MpsError(f"The MPS server did not become ACTIVE within {timeout_s:g} s (its state: {state}).")
        time.sleep(0.05)


def find(pipe: Path) -> psutil.Process | None:
    """The living control daemon of a pipe folder by its pid file, or None (no file, dead, zombie, another program).

    A dead daemon leaves its pid file behind and the pid may be somebody else's by now, so the process must be the
    control program, started for this folder.
    """
    try:
        process = psutil.Process(int((pipe / _PID_FILE).read_text()))
        if not _lives(process) or Path((process.cmdline() or [""])[0]).name != BINARY:
            return None
        theirs = process.environ().get(PIPE_VARIABLE, _DEFAULT_PIPE)
    except psutil.AccessDenied:  # another user's daemon shows its name but not its environment
        return process
    except (OSError, ValueError, psutil.Error):
        return None
    return process if os.path.realpath(theirs) == os.path.realpath(pipe) else None


def _lives(process: psutil.Process) -> bool:
    """Whether the process runs. A zombie does not: in a container nobody may reap the daemon."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _family(daemon: psutil.Process | None) -> list[psutil.Process]:
    """The daemon and its servers; to be asked before the daemon ends, for a server's parent is lost with it."""
    try:
        return [] if daemon is None else [daemon, *daemon.children()]
    except psutil.NoSuchProcess:
        return []


def _end(processes: Sequence[psutil.Process], grace_s: float) -> None:
    """Wait until all processes have gone; SIGKILL those that have not after ``grace_s`` seconds.

    Raises:
        MpsError: One is still there.
    """
    living = _wait_gone(processes, grace_s)
    for process in living:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.kill()
    left = _wait_gone(living, _KILL_S)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise MpsError(f"The MPS processes {pids} did not end.", f"Look at them with: ps -fp {pids.replace(' ', '')}")


def _wait_gone(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    deadline = time.monotonic() + timeout_s
    while True:
        living = [process for process in processes if _lives(process)]
        if not living or time.monotonic() >= deadline:
            return living
        time.sleep(0.02)
