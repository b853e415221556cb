"""The front-end of ``nvidia-cuda-mps-control``: ask a control daemon, and believe only what it prints.

The program answers an unknown command on stdout with status 0 (seen on binary version 13000), and a hung daemon hangs
every front-end. So each command is a call of its own, with a timeout, and each answer is parsed.
``tests/contract/test_control.py`` holds what the real program was seen to do.
"""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ts_mps.errors import MpsError

BINARY = "nvidia-cuda-mps-control"
PIPE_VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
LOG_VARIABLE = "CUDA_MPS_LOG_DIRECTORY"
#: Protocol 3 (opt-in from CUDA 13.4) speaks other commands; the variable wins over a daemon's flag.
PROTOCOL = {"CUDA_MPS_PROTOCOL_VERSION": "2"}

_NOT_FOUND = "Cannot find MPS control daemon process"
#: A daemon serves one front-end at a time and sends the next one away (seen with nine that asked without pause, on
#: binary version 13000: three of five calls). The command has not reached it, so it may be sent again.
_BUSY = "Cannot send command to MPS control daemon process"
_GPU_UUID = re.compile(r"GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class DaemonNotFound(MpsError):
    """No control daemon listens on the pipe folder."""


class DaemonTimeout(MpsError):
    """A control daemon listens and does not answer."""


class UnexpectedAnswer(MpsError):
    """A control daemon answered, but not what was asked."""


@dataclass(frozen=True)
class ClientProcess:
    """One row of ``ps``.

    Args:
        pid: The client's process id in the daemon's PID namespace.
        id: The server's number for the client.
        server: The server's process id.
        device: The first characters of the GPU's UUID.
        namespace: Inode number of the client's PID namespace.
        command: The client's executable.
    """

    pid: int
    id: int
    server: int
    device: str
    namespace: int
    command: str


class Control:
    """Asks the control daemon of one pipe folder.

    Args:
        pipe: CUDA_MPS_PIPE_DIRECTORY of the daemon.
        environ: Environment of the front-end; PATH finds the program. Default: this process's.
        timeout: Seconds that one answer may take.

    Raises:
        MpsError: The program is not installed.
    """

    def __init__(self, pipe: Path, *, environ: Mapping[str, str] | None = None, timeout: float = 10.0) -> None:
        self.pipe = pipe
        self.timeout = timeout
        self._environ = {**(os.environ if environ is None else environ), PIPE_VARIABLE: str(pipe), **PROTOCOL}
        self._binary = require_binary(self._environ)

    def ask(self, command: str, *, wait: float = 0.0) -> str:
        """Send one command and return what the daemon printed.

        Args:
            command: One line, without the newline.
            wait: Seconds that the command itself may take, on top of the timeout.

        Raises:
            DaemonNotFound: No daemon listens on the pipe folder.
            DaemonTimeout: The daemon does not answer in time.
            UnexpectedAnswer: The daemon does not know the command, or the front-end failed.
        """
        limit = self.timeout + wait
        deadline = time.monotonic() + limit
        while True:
            done = self._run(command, max(0.01, deadline - time.monotonic()))
            if done is None or (_BUSY in done.stderr and time.monotonic() >= deadline):
                raise DaemonTimeout(
                    f"The MPS control daemon at {self.pipe} did not answer '{command}' within {limit:g} s."
                )
            if _BUSY not in done.stderr:
                break
            # Not in step with the others, or all of them would meet again.
            time.sleep(random.uniform(0.002, 0.02))
        if _NOT_FOUND in done.stderr:
            raise DaemonNotFound(f"No MPS control daemon listens at {self.pipe}.")
        if done.returncode != 0 or done.stdout.startswith("Unknown command"):
            raise self._unexpected(command, done.stdout + done.stderr)
        return done.stdout

    def _run(self, command: str, seconds: float) -> subprocess.CompletedProcess[str] | None:
        """One run of the front-end; None if it takes longer."""
        try:
            return subprocess.run(
                [self._binary],
                input=command + "\n",
                env=self._environ,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return None

    def answers(self) -> bool:
        """Whether a daemon listens on the pipe folder and answers in time."""
        with suppress(MpsError):
            self.servers()
            return True
        return False

    def servers(self) -> tuple[int, ...]:
        """Process ids of the daemon's servers; none before the first client or ``start_server``."""
        return self._pids("get_server_list")

    def server_status(self, server: int) -> str | None:
        """INITIALIZING, ACTIVE or FAULT; None if there is no such server. Blocks while one starts (seen: 0.2 s)."""
        command = f"get_server_status {server}"
        answer = self.ask(command).strip()
        if "not found" in answer:
            return None
        if not re.fullmatch("[A-Z_]+", answer):
            raise self._unexpected(command, answer)
        return answer

    def clients(self, server: int) -> tuple[int, ...]:
        """Process ids of a server's clients, in the daemon's PID namespace; empty if there is no such server."""
        return self._pids(f"get_client_list {server}")

    def all_clients(self) -> tuple[int, ...]:
        """Process ids of the clients of all servers."""
        return tuple(pid for server in self.servers() for pid in self.clients(server))

    def processes(self) -> tuple[ClientProcess, ...]:
        """What ``ps`` lists: one row per client."""
        answer = self.ask("ps")
        if "not found" in answer:  # no server yet
            return ()
        try:
            return tuple(_client_process(line) for line in answer.splitlines()[1:])
        except ValueError as error:
            raise self._unexpected("ps", answer) from error

    def devices(self) -> tuple[str, ...]:
        """UUIDs of the GPUs that the daemon serves; empty if the daemon is too old to say."""
        with suppress(UnexpectedAnswer):
            return tuple(dict.fromkeys(_GPU_UUID.findall(self.ask("device_query"))))
        return ()

    def start_server(self, uid: int) -> None:
        """Have a server started for this user's clients before the first one comes; one that runs stays."""
        self._silent(f"start_server -uid {uid}")

    def terminate_client(self, server: int, pid: int) -> None:
        """Destroy a client's contexts, even busy ones; its process gets CUDA error 810 and can then be killed safely.

        At most once for a process: it stays listed until its process exits, and a second ``terminate_client`` before
        that blocks the whole daemon until then (seen on binary version 13000).
        """
        command = f"terminate_client {server} {pid}"
        answer = self.ask(command)
        if answer.strip() != "0":
            raise self._unexpected(command, answer)

    def quit(self, timeout_s: float) -> None:
        """End the daemon and its servers; after ``timeout_s`` (whole seconds, rounded up) even with clients."""
        seconds = max(1, math.ceil(timeout_s))
        self._silent(f"quit -t {seconds}", wait=seconds)

    def default_active_thread_percentage(self) -> float:
        """The active thread percentage that the next server starts with."""
        command = "get_default_active_thread_percentage"
        answer = self.ask(command)
        try:
            return float(answer)
        except ValueError as error:
            raise self._unexpected(command, answer) from error

    def _pids(self, command: str) -> tuple[int, ...]:
        answer = self.ask(command)
        if "not found" in answer:
            return ()
        try:
            return tuple(int(line) for line in answer.splitlines())
        except ValueError as error:
            raise self._unexpected(command, answer) from error

    def _silent(self, command: str, *, wait: float = 0.0) -> None:
        answer = self.ask(command, wait=wait)
        if answer.strip():
            raise self._unexpected(command, answer)

    def _unexpected(self, command: str, answer: str) -> UnexpectedAnswer:
        return UnexpectedAnswer(
            f"The MPS control daemon at {self.pipe} answered '{command}' in a way that ts-mps does not know.",
            details=answer.strip(),
        )


def _client_process(row: str) -> ClientProcess:
    pid, number, server, device, namespace, command = row.split(None, 5)
    return ClientProcess(int(pid), int(number), int(server), device, int(namespace), command.strip())


def find_binary(environ: Mapping[str, str]) -> str | None:
    """The control program by PATH, else in /usr/sbin (Debian's place, which is not on every user's PATH)."""
    return shutil.which(BINARY, path=environ.get("PATH", os.defpath) + ":/usr/sbin")


def require_binary(environ: Mapping[str, str]) -> str:
    """The control program's path.

    Raises:
        MpsError: It is not installed.
    """
    binary = find_binary(environ)
    if binary is None:
        raise MpsError(
            f"The MPS control program {BINARY} was not found on PATH.",
            "It comes with NVIDIA's driver (Debian: package nvidia-cuda-mps); in a container, mount the driver's "
            "programs (NVIDIA_DRIVER_CAPABILITIES=compute,utility), or start with --mps off.",
        )
    return binary


def binary_version(binary: str) -> int:
    """The control program's version, 13000 for CUDA 13.0; 0 if it names none.

    Raises:
        MpsError: The program cannot be run.
    """
    try:
        done = subprocess.run(
            [binary, "-v"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MpsError(f"The MPS control program {binary} cannot be run: {error}.") from error
    found = re.search(r"Binary version: (\d+)", done.stdout)
    return int(found[1]) if found else 0
