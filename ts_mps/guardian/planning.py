"""From facts to the plan of one instance."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ts_mps.gpu.caps import client_cap, max_connections
from ts_mps.gpu.inventory import Gpu
from ts_mps.guardian.choice import MpsChoice
from ts_mps.mps.control import Control
from ts_mps.paths import Home
from ts_mps.plan.model import Plan, PlannedGpu
from ts_mps.plan.place import HostFacts, ModelDemand, place
from ts_mps.slots import seat_holders
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.models import ModelRequest


def _planned_gpus(
    gpus: tuple[Gpu, ...], mps: MpsChoice, home: Home, environ: Mapping[str, str]
) -> tuple[PlannedGpu, ...]:
    return tuple(
        PlannedGpu(
            gpu.index,
            gpu.uuid,
            gpu.name,
            client_cap(gpu.compute_capability, mps.version, max_connections(environ)) if mps.on else None,
            str(mps.adopted_pipe or home.gpu(gpu.uuid).pipe) if mps.on else None,
        )
        for gpu in gpus
    )


def make_plan(
    gpus: tuple[Gpu, ...],
    models: tuple[ModelRequest, ...],
    mps: MpsChoice,
    arguments: StartArguments,
    home: Home,
    environ: Mapping[str, str],
) -> Plan:
    """Place the workers of the models, beside the clients that are already there."""
    planned = _planned_gpus(gpus, mps, home, environ)
    demands = [
        ModelDemand(
            model.name,
            model.version or None,
            model.workers,
            on_gpu=model.device_type != "cpu" and not model.parallel,
            device_ids=model.device_ids,
        )
        for model in models
    ]
    host = HostFacts(
        cores=tuple(sorted(os.sched_getaffinity(0))),
        gpu_cores={gpu.uuid: gpu.cores for gpu in gpus},
        set_threads="OMP_NUM_THREADS" not in environ,
        affinity=arguments.cpu_affinity,
    )
    return place(planned, demands, host, _attached(planned, mps, home) if mps.on else {})


def _attached(gpus: tuple[PlannedGpu, ...], mps: MpsChoice, home: Home) -> dict[str, int]:
    """MPS clients that others have on each GPU: other instances' workers, and strangers on an adopted daemon."""
    counts = {}
    for gpu in gpus:
        pids = {holder.get("pid") for holder in seat_holders(home.gpu(gpu.uuid))}
        if mps.adopted_pipe is not None:
            pids |= set(Control(mps.adopted_pipe).all_clients())
        counts[gpu.uuid] = len(pids)
    return counts
