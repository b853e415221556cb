"""Placement: one slot for each worker asked for, spread over the GPUs, never past a client cap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ts_mps.errors import PlanError
from ts_mps.plan.model import Plan, PlannedGpu, Slot


@dataclass(frozen=True)
class ModelDemand:
    """What one model asks for.

    Attributes:
        name: Registered model name.
        version: Model version, if known.
        workers: Workers that TorchServe will start.
        on_gpu: False for a model whose configuration says ``deviceType: cpu``.
        device_ids: ``deviceIds`` of its model-config.yaml: positions in the list of GPUs in use, used round robin
            as TorchServe does; empty for "anywhere".
    """

    name: str
    version: str | None
    workers: int
    on_gpu: bool = True
    device_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class HostFacts:
    """What the host offers to all workers together.

    Attributes:
        cores: Cores that this process may use.
        gpu_cores: UUID -> cores near that GPU (its NUMA node).
        set_threads: False if the user set OMP_NUM_THREADS, which then stands.
        affinity: "none", "numa" (a worker may use all cores near its GPU) or "cores" (cores of its own).
    """

    cores: tuple[int, ...]
    gpu_cores: Mapping[str, tuple[int, ...]]
    set_threads: bool = True
    affinity: str = "numa"


def place(
    gpus: Sequence[PlannedGpu],
    models: Sequence[ModelDemand],
    host: HostFacts,
    attached: Mapping[str, int] | None = None,
) -> Plan:
    """Give every worker a slot.

    A model with ``deviceIds`` goes where they say. Every other worker goes to the GPU with the fewest workers so
    far, counting clients that are already attached; the lower index wins a tie. TorchServe's own round robin starts
    at GPU 1 and is not used.

    Args:
        gpus: GPUs in use; empty for a plan on the CPU.
        models: What is asked for, in the order of registration.
        host: Cores and thread policy.
        attached: UUID -> MPS clients that are not ours.

    Raises:
        PlanError: A GPU would get more clients than its cap, or a model names a GPU that is not in use.
    """
    load = Counter({gpu.uuid: (attached or {}).get(gpu.uuid, 0) for gpu in gpus})
    placed: list[tuple[ModelDemand, PlannedGpu | None]] = []
    for model in models:
        for worker in range(model.workers):
            gpu = _choose(gpus, model, worker, load) if gpus and model.on_gpu else None
            if gpu is not None:
                load[gpu.uuid] += 1
            placed.append((model, gpu))
    _check_caps(gpus, load, attached or {}, models)

    threads = max(1, len(host.cores) // max(1, len(placed))) if host.set_threads else 0
    on_gpu: Counter[str | None] = Counter(gpu.uuid if gpu else None for _, gpu in placed)
    taken: Counter[str | None] = Counter()
    slots = []
    for number, (model, gpu) in enumerate(placed):
        uuid = gpu.uuid if gpu else None
        cores = _cores(host, uuid, taken[uuid], on_gpu[uuid])
        taken[uuid] += 1
        slots.append(Slot(number, model.name, model.version, uuid, threads, cores))
    return Plan(tuple(gpus), tuple(slots))


def _choose(gpus: Sequence[PlannedGpu], model: ModelDemand, worker: int, load: Counter[str]) -> PlannedGpu:
    if not model.device_ids:
        return min(gpus, key=lambda gpu: (load[gpu.uuid], gpu.index))
    position = model.device_ids[worker % len(model.device_ids)]
    if not 0 <= position < len(gpus):
        raise PlanError(
            f"Model {model.name} asks for deviceIds {list(model.device_ids)}, and {len(gpus)} GPU(s) are in use.",
            f"Use ids from 0 to {len(gpus) - 1} in its model-config.yaml, or make more GPUs visible.",
        )
    return gpus[position]


def _check_caps(
    gpus: Sequence[PlannedGpu],
    load: Mapping[str, int],
    attached: Mapping[str, int],
    models: Sequence[ModelDemand],
) -> None:
    for gpu in gpus:
        if gpu.cap is None or load[gpu.uuid] <= gpu.cap:
            continue
        strangers = attached.get(gpu.uuid, 0)
        asked = ", ".join(f"{model.name}: {model.workers}" for model in models if model.on_gpu)
        already = f" of which {strangers} are taken by others" if strangers else ""
        raise PlanError(
            f"{gpu.label} would get {load[gpu.uuid] - strangers} workers, and its MPS server takes {gpu.cap} "
            f"clients{already} (asked for: {asked}).",
            f"Ask for at most {sum((g.cap or 0) - attached.get(g.uuid, 0) for g in gpus)} workers in all "
            "(--workers N, or minWorkers in model-config.yaml), make more GPUs visible, or use --mps off.",
        )


def _cores(host: HostFacts, uuid: str | None, position: int, workers: int) -> tuple[int, ...]:
    if host.affinity == "none":
        return ()
    near = host.gpu_cores.get(uuid, ()) if uuid is not None else ()
    pool = tuple(core for core in host.cores if core in near) or host.cores
    if host.affinity == "cores":
        share = len(pool) // workers
        return pool[position * share : (position + 1) * share] if share else (pool[position % len(pool)],)
    return pool if len(pool) < len(host.cores) else ()
