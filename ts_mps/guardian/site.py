"""The machine as the planner sees it: GPUs or MIG instances with their client caps, and the host's cores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ts_mps.errors import PlanError
from ts_mps.gpu.caps import cap_of, max_connections
from ts_mps.gpu.inventory import Gpu, Inventory, MigInstance
from ts_mps.gpu.machine import MachineFacts
from ts_mps.gpu.measured import measured_cap
from ts_mps.guardian.choice import MpsChoice
from ts_mps.mps.control import Control
from ts_mps.paths import Home
from ts_mps.plan.facts import GpuFacts, HostFacts
from ts_mps.seats import seat_holders

_GIB = 2**30


@dataclass(frozen=True)
class Site:
    """What a plan is made for.

    Attributes:
        gpus: GPUs and MIG instances in use, in the user's order; empty for a plan on the CPU.
        host: Cores and threads.
    """

    gpus: tuple[GpuFacts, ...]
    host: HostFacts

    def fingerprints(self) -> dict[str, str]:
        """What must be the same where a plan is used, by name of the fact; free memory and clients may differ."""
        if not self.gpus:
            return {"GPUs": "none", "host cores": _ranges(self.host.cores)}
        facts = {"GPUs": str(len(self.gpus)), "host cores": _ranges(self.host.cores)}
        for number, gpu in enumerate(self.gpus, 1):
            sms = f", {gpu.sms} SMs" if gpu.sms else ""
            facts[f"GPU {number} of the plan"] = (
                f"{gpu.name}, {gpu.uuid}, {gpu.memory_total / _GIB:.2f} GiB ({gpu.memory_total} bytes){sms}"
            )
            facts[f"client cap of GPU {number} of the plan"] = str(gpu.cap)
        return facts


def read_machine(
    inventory: Inventory, control_version: int, home: Home | None, environ: Mapping[str, str]
) -> MachineFacts:
    """This machine, with the caps that were measured on it."""
    connections = max_connections(environ)
    caps = {
        gpu.uuid: cap
        for gpu in inventory.gpus
        if home is not None
        and (cap := measured_cap(home.caps, inventory.driver_version, gpu.name, control_version, connections))
    }
    return MachineFacts(inventory, tuple(sorted(os.sched_getaffinity(0))), control_version, caps)


def site_of(
    machine: MachineFacts,
    gpus: Sequence[Gpu],
    environ: Mapping[str, str],
    *,
    affinity: str,
    pipes: Mapping[str, str] | None = None,
    attached: Mapping[str, int] | None = None,
    split_mig: bool = True,
) -> Site:
    """The part of a machine that a plan may use.

    Args:
        machine: The machine.
        gpus: Those of its GPUs that are in use.
        environ: Where OMP_NUM_THREADS and CUDA_DEVICE_MAX_CONNECTIONS are looked up.
        affinity: ``--cpu-affinity``.
        pipes: UUID -> CUDA_MPS_PIPE_DIRECTORY of the daemon that will serve it; None for another machine.
        attached: UUID -> MPS clients that are there and not of this plan.
        split_mig: Whether a GPU in MIG mode stands for its instances, each a GPU with a cap of its own.

    Raises:
        PlanError: A GPU is in MIG mode and has no instances.
    """
    connections = max_connections(environ)
    facts = []
    for gpu, instance in _places(gpus, split_mig):
        uuid = instance.uuid if instance else gpu.uuid
        of_instance = machine.measured_caps.get(uuid) if instance else None
        cap = cap_of(gpu, machine.control_version, connections, machine.measured_caps.get(gpu.uuid), instance)
        facts.append(
            GpuFacts(
                index=gpu.index,
                uuid=uuid,
                name=f"{gpu.name} MIG {instance.profile}" if instance else gpu.name,
                memory_total=(instance or gpu).memory_total,
                memory_taken=(instance or gpu).memory_total - (instance or gpu).memory_free,
                sms=(instance or gpu).sms,
                cores=gpu.cores,
                cap=of_instance or cap.limit,
                cap_why="measured" if of_instance else cap.why,
                attached=(attached or {}).get(uuid, 0),
                pipe=(pipes or {}).get(uuid),
            )
        )
    host = HostFacts(cores=machine.cores, set_threads="OMP_NUM_THREADS" not in environ, affinity=affinity)
    return Site(tuple(facts), host)


def site_here(
    inventory: Inventory,
    gpus: Sequence[Gpu],
    mps: MpsChoice,
    affinity: str,
    home: Home,
    environ: Mapping[str, str],
) -> Site:
    """This machine, with the daemons that will serve its GPUs and the clients that others have on them."""
    return site_of(
        read_machine(inventory, mps.version, home, environ),
        gpus,
        environ,
        affinity=affinity,
        pipes={gpu.uuid: str(mps.adopted_pipe or home.gpu(gpu.uuid).pipe) for gpu in gpus} if mps.on else {},
        attached=attached_clients(gpus, mps.adopted_pipe, home) if mps.on else {},
        # A start takes no MIG instances: without MPS its workers run on the whole GPU as CUDA then shows it.
        split_mig=False,
    )


def attached_clients(gpus: Sequence[Gpu], adopted_pipe: Path | None, home: Home) -> dict[str, int]:
    """MPS clients that others have on each GPU: other instances' workers, and strangers on an adopted daemon."""
    counts = {}
    for gpu in gpus:
        pids = {holder.get("pid") for holder in seat_holders(home.gpu(gpu.uuid))}
        if adopted_pipe is not None:
            pids |= set(Control(adopted_pipe).all_clients())
        counts[gpu.uuid] = len(pids)
    return counts


def _places(gpus: Sequence[Gpu], split_mig: bool) -> Iterator[tuple[Gpu, MigInstance | None]]:
    for gpu in gpus:
        if not (gpu.mig_enabled and split_mig):
            yield gpu, None
        elif not gpu.mig:
            raise PlanError(
                f"GPU {gpu.index} ({gpu.name}) is in MIG mode and has no instances, so nothing can run on it.",
                f"Make some (nvidia-smi mig -i {gpu.index} -cgi ... -C), or leave the GPU out.",
            )
        else:
            yield from ((gpu, instance) for instance in gpu.mig)


def _ranges(cores: Sequence[int]) -> str:
    """(0, 1, 2, 5) as "0-2,5", the form of taskset and of cpuset files."""
    parts: list[list[int]] = []
    for core in cores:
        if parts and core == parts[-1][1] + 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
