"""What an instance is doing right now, looked up live: processes, daemons, slots, and TorchServe's own word."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ts_mps.errors import TsMpsError
from ts_mps.files import read_json
from ts_mps.guardian.state import GpuState, State, guardian_lives, load_state
from ts_mps.mps.control import Control
from ts_mps.paths import InstancePaths
from ts_mps.plan.model import Plan
from ts_mps.slots import Share, WorkerRecord, workers
from ts_mps.torchserve.api import ModelStatus
from ts_mps.torchserve.failures import WorkerFailure, failures
from ts_mps.torchserve.transport import call_url

#: Version of the JSON form that ``--json`` prints.
RESULT_VERSION = 1


@dataclass(frozen=True)
class GpuStatus:
    """One GPU: its daemon, its server, its clients.

    Attributes:
        index: NVML's index.
        uuid: NVML's UUID.
        name: Product name.
        daemon: "running", "adopted", "gone" or "off".
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


def look(paths: InstancePaths) -> Status | None:
    """Look at an instance; None if it has never been started here.

    Nothing is changed, and nothing that is broken raises: it becomes a sentence in ``problems``.
    """
    state = load_state(paths)
    if state is None:
        return None
    guardian = state.guardian if state.guardian and guardian_lives(paths) else None
    java = state.java if state.java and state.java.alive() else None
    problems = _process_problems(state, guardian is not None, java is not None)
    gpus, clients = _gpus(state, java is not None)
    problems += [
        f"GPU {gpu.index}: its MPS daemon is gone; workers cannot be started on it."
        for gpu in gpus
        if gpu.daemon == "gone"
    ]
    problems += [f"GPU {gpu.index}: its MPS server is in {gpu.server}." for gpu in gpus if gpu.server == "FAULT"]
    rows: tuple[WorkerStatus, ...] = ()
    if java is not None:
        models, trouble = _described(state)
        problems += trouble
        rows = _workers(state, models, tuple(workers(paths)), clients)
        problems += _worker_problems(paths, state, rows)
    return Status(
        instance=state.instance,
        phase=state.phase,
        mps=state.mps,
        mps_why=state.mps_why,
        since=state.since,
        guardian=guardian.pid if guardian else None,
        java=java.pid if java else None,
        config=state.config,
        config_source=state.config_source,
        folder=state.folder,
        inference=call_url(state.endpoints.inference),
        management=call_url(state.endpoints.management),
        metrics=call_url(state.endpoints.metrics) if state.endpoints.metrics else None,
        gpus=gpus,
        workers=rows,
        failures=failures(paths, since=state.started)[-5:],
        problems=tuple(problems),
    )


def _process_problems(state: State, guardian: bool, java: bool) -> list[str]:
    if state.phase in ("stopped", "failed"):
        return [f"It is not running ({state.phase}{': ' + state.error if state.error else ''})."]
    problems = []
    if not guardian:
        problems.append("Its guardian is gone: nothing watches it. Clean up with: ts-mps stop")
    if not java and state.phase == "serving":
        problems.append("TorchServe is gone.")
    if state.phase != "serving":
        problems.append(f"It is {state.phase}.")
    return problems


def _gpus(state: State, running: bool) -> tuple[tuple[GpuStatus, ...], set[int]]:
    """Each GPU, and the pids of all MPS clients."""
    rows, everyone = [], set[int]()
    for gpu in state.gpus:
        daemon, server, clients = _daemon(gpu) if running else ("off", "none", set[int]())
        everyone |= clients
        rows.append(GpuStatus(gpu.index, gpu.uuid, gpu.name, daemon, server, len(clients), gpu.cap, gpu.pipe))
    return tuple(rows), everyone


def _daemon(gpu: GpuState) -> tuple[str, str, set[int]]:
    if gpu.pipe is None:
        return "off", "none", set()
    control = Control(Path(gpu.pipe))
    try:
        servers = control.servers()
        states = [control.server_status(server) or "none" for server in servers]
        clients = {pid for server in servers for pid in control.clients(server)}
    except TsMpsError:
        return "gone", "none", set()
    return "adopted" if gpu.adopted else "running", ", ".join(states) or "none", clients


def _described(state: State) -> tuple[tuple[ModelStatus, ...], list[str]]:
    api = state.endpoints.api()
    try:
        return tuple(status for name in api.models() for status in api.describe(name)), []
    except TsMpsError as error:
        return (), [f"TorchServe's management API does not answer: {error}"]


def _workers(
    state: State, models: tuple[ModelStatus, ...], slots: tuple[WorkerRecord, ...], clients: set[int]
) -> tuple[WorkerStatus, ...]:
    """Workers of slots and of TorchServe's descriptions, joined by pid."""
    said = {
        # TorchServe calls every worker UNLOADING that is not READY, one that loads for the first time included.
        worker.pid: (model, "READY" if worker.ready else "LOADING")
        for model in models
        for worker in model.workers
        if worker.pid > 0
    }
    index = {gpu.uuid: gpu.index for gpu in state.gpus}
    rows = []
    for record in slots:
        _, word = said.pop(record.pid, (None, record.state.upper()))
        rows.append(
            WorkerStatus(
                record.slot.model,
                record.slot.version or "",
                record.pid,
                index.get(record.slot.gpu or ""),
                record.slot.number,
                record.planned,
                word,
                record.pid in clients if state.mps == "on" and record.slot.gpu else None,
                record.since if record.state == "ready" else None,
                record.got,
                record.slot.sms or None if record.slot.thread_percentage is not None else None,
            )
        )
    for pid, (model, word) in said.items():
        attached = pid in clients if state.mps == "on" else None
        rows.append(WorkerStatus(model.name, model.version, pid, None, None, False, word, attached, None))
    return tuple(sorted(rows, key=lambda row: (row.model, row.version, row.slot is None, row.slot or 0, row.pid)))


def _worker_problems(paths: InstancePaths, state: State, rows: tuple[WorkerStatus, ...]) -> list[str]:
    try:
        planned = Plan.from_json(read_json(paths.plan) or {}).slots
    except ValueError as error:
        return [f"Its plan {paths.plan} cannot be read: {error}."]
    ready = Counter(row.model for row in rows if row.state == "READY")
    problems = [
        f"Model {model}: {ready[model]} of {count} planned workers are READY."
        for model, count in Counter(slot.model for slot in planned).items()
        if ready[model] < count
    ]
    problems += [
        f"Worker {row.pid} of model {row.model} is READY and not an MPS client."
        for row in rows
        if row.attached is False and row.state == "READY"
    ]
    return problems + [sentence for row in rows if (sentence := _unlimited(row))]


def _unlimited(row: WorkerStatus) -> str:
    """The sentence for a worker whose thread percentage was not applied; empty for any other."""
    sms = row.got.sms if row.got else None
    if sms is None or row.expected_sms is None or sms <= row.expected_sms:
        return ""
    return (
        f"Worker {row.pid} of model {row.model} has {sms} SMs of GPU {row.gpu}, and its thread percentage should leave "
        f"it {row.expected_sms}: the limit was not applied."
    )
