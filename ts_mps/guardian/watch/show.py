"""The last look and what is remembered, in the form that status, metrics and health read."""

from __future__ import annotations

from collections import Counter

from ts_mps.activity import UNKNOWN
from ts_mps.guardian.watch.memory import Memory
from ts_mps.guardian.watch.seen import ANSWERING, GpuSeen, Seen
from ts_mps.guardian.watched import Watched, WatchedGpu, WatchedModel


def watched(memory: Memory, seen: Seen, *, java_restarts: int, took: float) -> Watched:
    """Put it together, as of now.

    Args:
        memory: After the judgement.
        seen: The look.
        java_restarts: How often java was started again.
        took: Seconds that the look took.
    """
    return Watched(
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
    daemon = _daemon(memory, gpu)
    server = gpu.server if daemon in ANSWERING else ""
    return WatchedGpu(gpu.uuid, gpu.index, daemon, server, len(_clients(memory, gpu)), gpu.cap, gpu.lost)


def _daemon(memory: Memory, gpu: GpuSeen) -> str:
    # One answer that is late is not shown: somebody else's command may just have been served.
    fault = memory.faults.get(gpu.uuid)
    hung = fault is not None and fault.kind == "daemon-hung"
    return gpu.daemon if gpu.daemon != "silent" else "hung" if hung else "running"


def _clients(memory: Memory, gpu: GpuSeen) -> frozenset[int]:
    """Nobody where the daemon does not answer or the GPU is lost: its last list is of before."""
    return gpu.clients if _daemon(memory, gpu) in ANSWERING and not gpu.lost else frozenset()


def _model(memory: Memory, seen: Seen, name: str) -> WatchedModel:
    places = [place.slot for place in seen.places if place.model == name]
    ready = [worker for worker in seen.workers if worker.model == name and worker.ready]
    clients = {gpu.uuid: _clients(memory, gpu) for gpu in seen.gpus if gpu.daemon != "off"}
    return WatchedModel(
        name=name,
        planned=len(places),
        ready=len(ready),
        attached=sum(worker.gpu not in clients or worker.process.pid in clients[worker.gpu] for worker in ready),
        held=dict(Counter(memory.holds[slot].reason for slot in places if slot in memory.holds)),
        restarts=memory.restarts.get(name, {}),
        hidden=sum(worker.batch == UNKNOWN for worker in ready),
    )
