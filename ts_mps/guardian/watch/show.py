"""The last look and what is remembered, in the form that status, metrics and health read."""

from __future__ import annotations

from collections import Counter

from ts_mps.guardian.watch.memory import Memory
from ts_mps.guardian.watch.seen import GpuSeen, Seen, WorkerSeen
from ts_mps.guardian.watched import Watched, WatchedGpu, WatchedModel


def watched(memory: Memory, seen: Seen, *, now: float, java_restarts: int, took: float) -> Watched:
    """Put it together.

    Args:
        memory: After the judgement.
        seen: The look.
        now: Seconds since the epoch.
        java_restarts: How often java was started again.
        took: Seconds that the look took.
    """
    return Watched(
        at=now,
        java=seen.java,
        java_restarts=java_restarts,
        gpus=tuple(_gpu(memory, gpu) for gpu in seen.gpus),
        models=tuple(_model(memory, seen, name) for name in dict.fromkeys(place.model for place in seen.places)),
        faults=memory.counts,
        recovery_seconds=memory.recoveries,
        took=took,
        changing=seen.change.text,
    )


def _gpu(memory: Memory, gpu: GpuSeen) -> WatchedGpu:
    # One answer that is late is not shown: somebody else's command may just have been served.
    fault = memory.faults.get(gpu.uuid)
    hung = fault is not None and fault.kind == "daemon-hung"
    daemon = gpu.daemon if gpu.daemon != "silent" else "hung" if hung else "running"
    server = gpu.server if daemon in ("running", "adopted") else ""
    return WatchedGpu(gpu.uuid, gpu.index, daemon, server, len(gpu.clients), gpu.cap, gpu.lost)


def _model(memory: Memory, seen: Seen, name: str) -> WatchedModel:
    places = [place.slot for place in seen.places if place.model == name]
    ready = [worker for worker in seen.workers if worker.model == name and worker.ready]
    gpus = {gpu.uuid: gpu for gpu in seen.gpus}
    return WatchedModel(
        name=name,
        planned=len(places),
        ready=len(ready),
        attached=sum(_attached(gpus.get(worker.gpu or ""), worker) for worker in ready),
        held=dict(Counter(memory.holds[slot].reason for slot in places if slot in memory.holds)),
        restarts=memory.restarts.get(name, {}),
    )


def _attached(gpu: GpuSeen | None, worker: WorkerSeen) -> bool:
    return gpu is None or gpu.daemon == "off" or worker.process.pid in gpu.clients
