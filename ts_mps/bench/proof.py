"""Proof that the workers of a run are MPS clients, or that none of them is: a figure without it is nobody's."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ts_mps.bench.records import Arm
from ts_mps.errors import MpsError
from ts_mps.mps.control import Control

#: Where CUDA looks for a daemon where nobody says (NVIDIA MPS guide, CUDA_MPS_PIPE_DIRECTORY).
DEFAULT_PIPE = Path("/tmp/nvidia-mps")


@dataclass(frozen=True)
class Witness:
    """What was seen at one instant.

    Attributes:
        workers: Pids of the workers that are READY, ascending.
        clients: Pids of MPS clients: those that the daemon lists, or where none may be, all that could be found.
        problems: What the server itself says is wrong, one sentence each.
    """

    workers: tuple[int, ...]
    clients: frozenset[int]
    problems: tuple[str, ...] = ()

    @property
    def proven(self) -> int:
        """Workers that are clients."""
        return len(self.clients.intersection(self.workers))


def why_void(arm: Arm, witness: Witness, when: str) -> str:
    """Why a run of this arm does not count after what was seen, as a sentence; empty if it does.

    Args:
        arm: What should be.
        witness: What is.
        when: "before the load" or "after the load".
    """
    if witness.problems:
        return f"{when.capitalize()} the server was not as planned: {' '.join(witness.problems)}"
    if len(witness.workers) != arm.workers:
        return f"{when.capitalize()} {len(witness.workers)} of {arm.workers} workers were READY."
    if arm.mps and witness.proven < arm.workers:
        others = ", ".join(str(pid) for pid in witness.workers if pid not in witness.clients)
        return (
            f"{when.capitalize()} {witness.proven} of {arm.workers} workers were MPS clients: {others} did not stand "
            "in the daemon's client list."
        )
    if not arm.mps and witness.proven:
        found = ", ".join(str(pid) for pid in witness.workers if pid in witness.clients)
        return (
            f"{when.capitalize()} {witness.proven} of {arm.workers} workers were MPS clients, and none may be: {found}."
        )
    return ""


def why_changed(before: Witness, after: Witness) -> str:
    """Why the load was not answered by the same workers from its beginning to its end; empty if it was."""
    gone = [str(pid) for pid in before.workers if pid not in after.workers]
    return f"The workers {', '.join(gone)} died during the load and were replaced." if gone else ""


def listed_clients(pipes: Iterable[Path]) -> frozenset[int]:
    """Pids in the client lists of these daemons: the only proof that a process is a client.

    Raises:
        MpsError: One of the daemons does not answer.
    """
    return frozenset(pid for pipe in pipes for pid in Control(pipe).all_clients())


def clients_anywhere(gpus: Iterable[str]) -> frozenset[int]:
    """Pids of MPS clients of any daemon: of the one where CUDA looks by default, and what NVML says of these GPUs.

    For runs in which nobody may be a client; a daemon that does not answer has none to show.
    """
    found: set[int] = set()
    if DEFAULT_PIPE.is_dir():
        with suppress(MpsError):  # what somebody else's daemon left behind, or no control program
            found |= set(Control(DEFAULT_PIPE).all_clients())
    return frozenset(found | _nvml_clients(gpus))


def _nvml_clients(gpus: Iterable[str]) -> set[int]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no module or no driver, so no clients either
        return set()
    found: set[int] = set()
    try:
        for uuid in gpus:
            # In a container NVML may see no processes, and old drivers do not tell clients apart.
            with suppress(pynvml.NVMLError, AttributeError):
                handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                found |= {process.pid for process in pynvml.nvmlDeviceGetMPSComputeRunningProcesses(handle)}
    finally:
        pynvml.nvmlShutdown()
    return found
