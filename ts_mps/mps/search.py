"""One MPS client after the other on one daemon, until the driver refuses; all of them gone afterwards."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ts_mps.errors import MpsError, PreflightError
from ts_mps.gpu.inventory import Gpu, free_memory
from ts_mps.mps import holder
from ts_mps.mps.control import Control
from ts_mps.mps.daemon import terminate_and_kill

#: CUDA_ERROR_MPS_MAX_CLIENTS_REACHED and CUDA_ERROR_OUT_OF_MEMORY (CUDA driver API, cuda.h).
MAX_CLIENTS_REACHED = 808
OUT_OF_MEMORY = 2
#: Seconds for one context; an H200 takes less than one, a GPU without persistence mode several for the first.
_CONTEXT_S = 60.0
#: Seconds for all clients to go once they may.
_LEAVE_S = 30.0
#: Seconds for a client to be listed.
_LISTED_S = 5.0
#: Isolated and without site packages: a client starts in milliseconds and imports nothing of the working folder.
HOLDER = (sys.executable, "-I", "-S", holder.__file__)


@dataclass(frozen=True)
class Found:
    """How a search ended.

    Attributes:
        held: Clients that held a context at once.
        exact: Whether the next one was refused with error 808; else the cap is at least ``held``.
        why: What ended the search, a sentence.
        bytes_per_client: GPU memory that the first client took; 0 where NVML does not say.
    """

    held: int
    exact: bool
    why: str
    bytes_per_client: int


@dataclass(frozen=True)
class _Answer:
    """What a client said: the last call, its CUresult, and that result's name."""

    step: str
    error: int
    name: str


class Search:
    """Holds one client after the other.

    Args:
        gpu: The GPU.
        control: Its daemon, which nobody else uses.
        expected: The documented cap, for which there must be memory.
        environ: Environment of the clients.
        command: What is run for each; it speaks as :mod:`ts_mps.mps.holder` does.
        report: Is told how far it is.
    """

    def __init__(
        self,
        gpu: Gpu,
        control: Control,
        expected: int,
        environ: Mapping[str, str],
        command: Sequence[str],
        report: Callable[[str], None],
    ) -> None:
        self._gpu = gpu
        self._control = control
        self._expected = expected
        self._report = report
        self._environ = environ
        self._command = command
        self._clients: list[subprocess.Popen[str]] = []
        self._bytes_per_client = 0

    def run(self, bound: int) -> Found:
        """Search up to ``bound`` clients; all of them are gone when this returns or raises.

        Raises:
            PreflightError: The GPU has no memory for as many clients as are expected.
            MpsError: A client does not come to be one, or is refused with an error that says nothing about the cap.
        """
        try:
            return self._run(bound)
        finally:
            _end(self._clients, self._control.pipe)

    def _run(self, bound: int) -> Found:
        before = free_memory(self._gpu.uuid)
        for held in range(bound):
            client = self._start(held + 1)
            if client.error == MAX_CLIENTS_REACHED and held:
                why = f"Client {held + 1} was refused with CUDA error {client.error} ({client.name})."
                return self._found(held, True, why)
            if client.error == OUT_OF_MEMORY and held:
                return self._found(held, False, f"The GPU's memory was full before client {held + 1}.")
            if client.error:
                raise MpsError(
                    f"On GPU {self._gpu.index} ({self._gpu.uuid}) client {held + 1} got CUDA error {client.error} "
                    f"({client.name or 'unknown to the driver'}) from {client.step}, which says nothing about the cap; "
                    f"{held} contexts were held.",
                    "Look at the GPU with nvidia-smi, and run ts-mps doctor.",
                )
            if held == 0:
                self._check_listed(1)
                self._check_memory(before)
            self._report(f"{held + 1} clients")
        return self._found(bound, False, f"The search ends at {bound} clients, and none was refused.")

    def _found(self, held: int, exact: bool, why: str) -> Found:
        self._check_listed(held)
        return Found(held, exact, why, self._bytes_per_client)

    def _start(self, number: int) -> _Answer:
        process = subprocess.Popen(
            list(self._command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=dict(self._environ),
            start_new_session=True,  # Ctrl-C is for us: the clients go when we let them
        )
        self._clients.append(process)
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], _CONTEXT_S)
        line = process.stdout.readline() if ready else ""
        try:
            said = json.loads(line)
            return _Answer(str(said["step"]), int(said["error"]), str(said["name"]))
        except (ValueError, KeyError, TypeError) as error:
            if ready:
                process.kill()
                what = "ended without opening a CUDA context"
                details = process.communicate()[1].strip()
            else:
                what, details = f"did not open its CUDA context within {_CONTEXT_S:g} s", ""
            raise MpsError(
                f"Client {number} on GPU {self._gpu.index} ({self._gpu.uuid}) {what}.",
                "Look at the GPU with nvidia-smi.",
                details,
            ) from error

    def _check_listed(self, count: int) -> None:
        """A client that found no daemon runs without MPS and says nothing; then the count would mean nothing."""
        deadline = time.monotonic() + _LISTED_S
        ours = {process.pid for process in self._clients[:count]}
        while missing := ours - set(self._control.all_clients()):
            if time.monotonic() >= deadline:
                raise MpsError(
                    f"{len(missing)} of {count} processes on GPU {self._gpu.index} ({self._gpu.uuid}) opened a context "
                    "and are not in the MPS client list, so the cap cannot be told.",
                    "In a container, give daemon and clients the same PID namespace.",
                )
            time.sleep(0.05)

    def _check_memory(self, before: int | None) -> None:
        """Whether as many clients as are expected find room: a full GPU would harm its other users."""
        after = free_memory(self._gpu.uuid)
        if before is None or after is None:
            return
        self._bytes_per_client = max(0, before - after)
        needed = self._bytes_per_client * self._expected
        if needed > before:
            raise PreflightError(
                f"GPU {self._gpu.index} ({self._gpu.uuid}) has {before / 2**30:,.1f} GiB free, and {self._expected} "
                f"clients of {self._bytes_per_client / 2**20:,.0f} MiB need {needed / 2**30:,.1f} GiB.",
                "Stop what else uses the GPU, then probe again.",
            )


def _end(clients: Sequence[subprocess.Popen[str]], pipe: Path) -> None:
    """Let every client go, and kill those that do not."""
    for client in clients:
        if client.stdin is not None:
            with suppress(OSError):  # one that was refused has gone
                client.stdin.close()
    deadline = time.monotonic() + _LEAVE_S
    for client in clients:
        with suppress(subprocess.TimeoutExpired):
            client.wait(max(0.0, deadline - time.monotonic()))
    left = [client for client in clients if client.poll() is None]
    if left:
        terminate_and_kill(pipe, [client.pid for client in left])
    for client in clients:
        client.wait(_LEAVE_S)
        for stream in (client.stdout, client.stderr):
            if stream is not None:
                stream.close()
