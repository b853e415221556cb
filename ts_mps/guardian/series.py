"""An instance as Prometheus series: pure functions from what the guardian and the workers wrote to samples.

Names, units and labels are those of ts_mps/data/metrics.yaml; docs/reference/metrics.md tells what they mean. A pid
stands in one series per worker only (``ts_mps_worker_info``): the others are named by slot, and so outlive a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ts_mps.guardian.watched import Watched, WatchedGpu
from ts_mps.plan.model import Plan
from ts_mps.torchserve.metrics import Sample
from ts_mps.worker_records import WorkerRecord

#: A daemon's states, as WatchedGpu has them.
DAEMON_STATES = ("running", "adopted", "gone", "hung", "off")
#: A server's states: MPS's own (get_server_status), and "none" where there is no server or it is not known.
SERVER_STATES = ("INITIALIZING", "ACTIVE", "FAULT", "none")

Labels = tuple[tuple[str, str], ...]


def of_guardian(watched: Watched | None, *, lives: bool, fresh: bool, now: float) -> Iterator[Sample]:
    """Whether anybody watches.

    Args:
        watched: The last look; None if there was none.
        lives: Whether the guardian does.
        fresh: Whether the look is of the last seconds.
        now: Seconds since the epoch.
    """
    yield Sample("ts_mps_collect_timestamp_seconds", now, "Seconds")
    yield Sample("ts_mps_guardian_up", lives, "Boolean")
    yield Sample("ts_mps_look_fresh", fresh, "Boolean")
    yield Sample("ts_mps_look_timestamp_seconds", watched.at if watched else 0, "Seconds")
    if watched is not None:
        yield Sample("ts_mps_look_duration_seconds", watched.took, "Seconds")


def of_look(watched: Watched) -> Iterator[Sample]:
    """What only the guardian knows: daemons, servers, clients, and how workers stand against the plan."""
    for gpu in watched.gpus:
        yield from _gpu(gpu)
    for model in watched.models:
        labels = (("model_name", model.name),)
        yield Sample("ts_mps_workers_planned", model.planned, "Count", labels)
        yield Sample("ts_mps_workers_ready", model.ready, "Count", labels)
        yield Sample("ts_mps_workers_attached", model.attached, "Count", labels)
        yield Sample("ts_mps_workers_held", sum(model.held.values()), "Count", labels)
    if watched.recovery_seconds:
        yield Sample("ts_mps_last_recovery_seconds", watched.recovery_seconds[-1], "Seconds")
        yield Sample("ts_mps_longest_recovery_seconds", max(watched.recovery_seconds), "Seconds")


def _gpu(gpu: WatchedGpu) -> Iterator[Sample]:
    labels = _gpu_labels(gpu.index, gpu.uuid)
    yield Sample("ts_mps_gpu_usable", not gpu.lost, "Boolean", labels)
    yield from _states("ts_mps_daemon_state", labels, DAEMON_STATES, (gpu.daemon,))
    if gpu.cap is not None:
        yield Sample("ts_mps_gpu_clients", gpu.clients, "Count", labels)
        yield Sample("ts_mps_gpu_client_cap", gpu.cap, "Count", labels)
        # A daemon may have several servers, one for each user: "ACTIVE, FAULT".
        servers = tuple(part.strip() or "none" for part in gpu.server.split(","))
        yield from _states("ts_mps_server_state", labels, SERVER_STATES, servers)


def _states(name: str, labels: Labels, known: Iterable[str], true: tuple[str, ...]) -> Iterator[Sample]:
    """One series for each state, 1 for those that hold: the way Prometheus shows an enumeration."""
    for state in dict.fromkeys((*known, *true)):
        yield Sample(name, state in true, "Boolean", (*labels, ("state", state)))


def of_gpus(plan: Plan, activity: Mapping[str, float]) -> Iterator[Sample]:
    """What NVML says of the GPUs of the plan beyond TorchServe's own metrics; ``activity`` by UUID, 0 to 1."""
    for gpu in plan.gpus:
        if gpu.uuid in activity:
            yield Sample("ts_mps_gpu_sm_activity_ratio", activity[gpu.uuid], "Ratio", _gpu_labels(gpu.index, gpu.uuid))


def of_workers(
    workers: Iterable[WorkerRecord], plan: Plan, resident: Mapping[int, int], on_gpu: Mapping[int, int]
) -> Iterator[Sample]:
    """The living workers.

    Args:
        workers: What they say of themselves.
        plan: The plan, for the GPUs' indices.
        resident: Pid -> bytes of host memory.
        on_gpu: Pid -> bytes of GPU memory, as far as they are known.
    """
    index = {gpu.uuid: str(gpu.index) for gpu in plan.gpus}
    for worker in workers:
        slot = worker.slot
        gpu = index.get(slot.gpu or "", "cpu")
        labels = (("model_name", slot.model), ("slot", str(slot.number)), ("gpu", gpu))
        info = (*labels, ("uuid", slot.gpu or "none"), ("pid", str(worker.pid)))
        yield Sample("ts_mps_worker_info", 1, "Boolean", info)
        yield Sample("ts_mps_worker_ready", worker.state == "ready", "Boolean", labels)
        if worker.pid in resident:
            yield Sample("ts_mps_worker_resident_memory_bytes", resident[worker.pid], "Bytes", labels)
        if worker.pid in on_gpu:
            yield Sample("ts_mps_worker_gpu_memory_bytes", on_gpu[worker.pid], "Bytes", labels)
        got = worker.got
        if got is None or slot.gpu is None:
            continue
        share = 100.0 if got.thread_percentage is None else got.thread_percentage
        yield Sample("ts_mps_worker_sm_share_ratio", share / 100, "Ratio", labels)
        if got.sms is not None:
            yield Sample("ts_mps_worker_sms", got.sms, "Count", labels)
        if got.memory_limit is not None:
            yield Sample("ts_mps_worker_gpu_memory_limit_bytes", got.memory_limit, "Bytes", labels)


def totals(watched: Watched) -> tuple[Sample, ...]:
    """Counters since the guardian's start; the frontend wants to be told by how much they grew."""
    index = {gpu.uuid: str(gpu.index) for gpu in watched.gpus}
    found = [Sample("ts_mps_java_restarts_total", watched.java_restarts, "Count")]
    for model in watched.models:
        for cause, count in model.restarts.items():
            by_cause = (("model_name", model.name), ("cause", cause))
            found.append(Sample("ts_mps_worker_restarts_total", count, "Count", by_cause))
    for key, count in watched.faults.items():
        kind, _, uuid = key.partition(" ")
        labels = (("kind", kind), ("gpu", index.get(uuid, "none")), ("uuid", uuid or "none"))
        found.append(Sample("ts_mps_faults_total", count, "Count", labels))
    return tuple(found)


def _gpu_labels(index: int, uuid: str) -> Labels:
    return ("gpu", str(index)), ("uuid", uuid)
