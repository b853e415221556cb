"""One instance as ``ts-mps status`` shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ts_mps.torchserve.failures import WorkerFailure
from ts_mps.worker_records import Share

#: Version of the JSON form that ``--json`` prints.
RESULT_VERSION = 1


@dataclass(frozen=True)
class GpuStatus:
    """One GPU: its daemon, its server, its clients.

    Attributes:
        index: NVML's index.
        uuid: NVML's UUID.
        name: Product name.
        daemon: "running", "adopted", "gone", "hung" or "off".
        server: The server's state as MPS gives it (ACTIVE, FAULT, ...), "none" before the first client.
        clients: Processes in the client list, those of other instances included.
        cap: Clients that the server takes; None where MPS is off.
        pipe: CUDA_MPS_PIPE_DIRECTORY of its daemon.
    """

    index: int
    uuid: str
    name: str
    daemon: str
    server: str
    clients: int
    cap: int | None
    pipe: str | None


@dataclass(frozen=True)
class WorkerStatus:
    """One worker.

    Attributes:
        model: Registered model name.
        version: Model version.
        pid: Process id.
        gpu: NVML index of its GPU; None on the CPU.
        slot: Number of its slot; None for a worker that has none (yet).
        planned: Whether the slot is of the plan.
        state: "READY" once TorchServe says so, else "LOADING".
        attached: Whether its pid stands in the client list right now; None where MPS is off.
        since: When it became ready, seconds since the epoch; None while it loads.
        got: What it really got of its share; None while it loads, or without a slot.
        expected_sms: Streaming multiprocessors that its thread percentage should leave it; None where it has none, or
            where they are not known.
    """

    model: str
    version: str
    pid: int
    gpu: int | None
    slot: int | None
    planned: bool
    state: str
    attached: bool | None
    since: float | None
    got: Share | None = None
    expected_sms: int | None = None


@dataclass(frozen=True)
class Status:
    """One instance, and everything about it that is not as planned."""

    instance: str
    phase: str
    mps: str
    mps_why: str
    since: float
    guardian: int | None
    java: int | None
    config: str
    config_source: str
    folder: str
    inference: str
    management: str
    metrics: str | None
    gpus: tuple[GpuStatus, ...]
    workers: tuple[WorkerStatus, ...]
    failures: tuple[WorkerFailure, ...]
    problems: tuple[str, ...]

    @property
    def as_planned(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {"version": RESULT_VERSION, "as_planned": self.as_planned, **asdict(self)}
