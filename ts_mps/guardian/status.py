"""What an instance is doing right now, looked up live: processes, daemons, slots, and TorchServe's own word."""

from __future__ import annotations

import time
from pathlib import Path

from ts_mps.errors import TsMpsError
from ts_mps.files import read_json
from ts_mps.guardian import problems
from ts_mps.guardian.instance import GpuStatus, Status, WorkerStatus
from ts_mps.guardian.state import GpuState, State, guardian_lives, load_state
from ts_mps.guardian.watched import load_watched
from ts_mps.mps.control import Control, DaemonTimeout
from ts_mps.paths import InstancePaths
from ts_mps.plan.model import Plan
from ts_mps.torchserve.api import ModelStatus
from ts_mps.torchserve.failures import failures
from ts_mps.torchserve.transport import call_url
from ts_mps.worker_records import WorkerRecord, unreadable, workers


def look(paths: InstancePaths) -> Status | None:
    """Look at an instance; None if it has never been started here.

    Nothing is changed, and nothing that is broken raises: it becomes a sentence in ``problems``.

    Raises:
        TsMpsError: The state is of a version that is not known here.
    """
    state = load_state(paths)
    if state is None:
        return None
    guardian = state.guardian if state.guardian and guardian_lives(paths) else None
    java = state.java if state.java and state.java.alive() else None
    gpus, clients = _gpus(state, java is not None)
    found = [*problems.of_processes(state, guardian=guardian is not None, java=java is not None)]
    found += problems.of_gpus(gpus)
    if guardian is not None:
        found += problems.of_watch(load_watched(paths), time.monotonic())
    rows: tuple[WorkerStatus, ...] = ()
    if java is not None:
        models, trouble = _described(state)
        rows = _workers(state, models, tuple(workers(paths)), clients)
        found += [*trouble, *_plan_problems(paths, rows)]
        found += [f"{path} is of a worker of another version, and cannot be read." for path in unreadable(paths)]
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
        failures=failures(paths)[-5:],
        problems=tuple(found),
    )


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
    try:
        control = Control(Path(gpu.pipe))
        servers = control.servers()
        states = [control.server_status(server) or "none" for server in servers]
        clients = {pid for server in servers for pid in control.clients(server)}
    except DaemonTimeout:
        return "hung", "none", set()
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


def _plan_problems(paths: InstancePaths, rows: tuple[WorkerStatus, ...]) -> list[str]:
    try:
        planned = Plan.from_json(read_json(paths.plan) or {}).slots
    except ValueError as error:
        return [f"Its plan {paths.plan} cannot be read: {error}."]
    return problems.of_workers(planned, rows)
