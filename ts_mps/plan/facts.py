"""What a plan is made from: GPUs, models, the host, and the rules. Frozen values; whoever reads them does the I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ts_mps.plan.profile import Profile

#: What one MPS server keeps on its GPU beside its clients, in bytes (measured on an H200, driver 580: about 70 MiB).
SERVER_BYTES = 70 * 2**20


@dataclass(frozen=True)
class GpuFacts:
    """One GPU that workers may use.

    Attributes:
        index: NVML's index, for people.
        uuid: NVML's UUID, for programs; of a MIG instance, the instance's.
        name: The product's name.
        memory_total: Bytes.
        memory_taken: Bytes that processes hold which this plan does not place.
        sms: Streaming multiprocessors; 0 where they are not known.
        cores: Host cores near it (its NUMA node); empty where that is not known.
        cap: MPS clients (CUDA contexts) that one server takes on it.
        cap_why: Where the cap comes from, as a part of a sentence: "measured", "control binary 13000".
        attached: MPS clients that are there already and are not of this plan.
        pipe: CUDA_MPS_PIPE_DIRECTORY of the daemon that will serve it; None in a plan for another machine.
    """

    index: int
    uuid: str
    name: str
    memory_total: int
    memory_taken: int = 0
    sms: int = 0
    cores: tuple[int, ...] = ()
    cap: int = 48
    cap_why: str = ""
    attached: int = 0
    pipe: str | None = None

    @property
    def label(self) -> str:
        """How sentences name this GPU."""
        return f"GPU {self.index} ({self.name}, {self.uuid[:12]})"


@dataclass(frozen=True)
class WorkerWish:
    """How many workers a model shall have, over all GPUs.

    Attributes:
        least: At least so many, from 1; 0 for a model that is loaded without workers.
        most: At most so many; None for as many as pay off.
        source: Who said so, as a part of a sentence: "--workers", "minWorkers of its model-config.yaml".
    """

    least: int
    most: int | None
    source: str

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to decide."""
        return self.least == self.most


@dataclass(frozen=True)
class WorkerMemory:
    """GPU memory of one worker, in bytes.

    Attributes:
        context: Its CUDA context, before a model is loaded.
        weights: What loading the model adds, warm-up and captured graphs included.
        peak: What batches add on top.
        source: "profile", "config" (ts-mps.toml) or "estimate". What is only estimated never refuses a worker that
            somebody asked for by number.
    """

    context: int
    weights: int
    peak: int
    source: str

    @property
    def total(self) -> int:
        """The sum."""
        return self.context + self.weights + self.peak


@dataclass(frozen=True)
class ModelFacts:
    """One version of one model.

    Attributes:
        name: Registered model name.
        version: Model version, if known.
        workers: How many workers it shall have.
        on_gpu: False for a model whose configuration says ``deviceType: cpu``.
        device_ids: ``deviceIds`` of its model-config.yaml: positions in the list of GPUs, used round robin as
            TorchServe does; empty for "anywhere". A model that has them is placed so and in no other way.
        gpus: UUIDs of the only GPUs that it may use (ts-mps.toml); empty for all.
        weight: How much its throughput counts beside the other models', above 0.
        batch_size: Requests in its batches.
        memory: GPU memory of one worker; None for a model on the CPU, or where nothing is known.
        profile: What was measured of it, at this batch size; None if nothing was.
        thread_percentage: CUDA_MPS_ACTIVE_THREAD_PERCENTAGE in (0, 100] of its workers, before the policy's.
        memory_limit: CUDA_MPS_PINNED_DEVICE_MEM_LIMIT of its workers in bytes; None for none.
        priority: CUDA_MPS_CLIENT_PRIORITY: 0 normal, 1 below normal; None leaves the daemon's default.
    """

    name: str
    version: str | None
    workers: WorkerWish
    on_gpu: bool = True
    device_ids: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    weight: float = 1.0
    batch_size: int = 1
    memory: WorkerMemory | None = None
    profile: Profile | None = None
    thread_percentage: float | None = None
    memory_limit: int | None = None
    priority: int | None = None


@dataclass(frozen=True)
class HostFacts:
    """What the host offers to all workers together.

    Attributes:
        cores: Cores that workers may use.
        set_threads: False if the user set OMP_NUM_THREADS, which then stands.
        affinity: "none", "numa" (a worker may use all cores near its GPU) or "cores" (cores of its own).
    """

    cores: tuple[int, ...]
    set_threads: bool = True
    affinity: str = "numa"


#: How thread percentages are given out, with n workers on a GPU (NVIDIA MPS guide, "Volta MPS execution resource
#: provisioning"): not at all; 100 / n each; 100 / (0.5 n) each, so that two share what one may use; the same for all.
PERCENTAGE_POLICIES = ("none", "even", "overlap", "fixed")


@dataclass(frozen=True)
class Policy:
    """The rules of a plan.

    Attributes:
        reserve: Clients of each GPU's cap that are kept free, for a worker that is replaced while its predecessor
            still dies, and for tools.
        memory_margin: Part of each GPU's memory in [0, 1) that is kept free.
        cores_per_worker: Host cores that each worker needs at least, from 0.
        percentages: One of :data:`PERCENTAGE_POLICIES`.
        percentage: The thread percentage in (0, 100] of the policy "fixed".
        least_gain: A further worker must raise its model's throughput by at least this part.
    """

    reserve: int = 1
    memory_margin: float = 0.05
    cores_per_worker: float = 1.0
    percentages: str = "none"
    percentage: float | None = None
    least_gain: float = 0.03


@dataclass(frozen=True)
class Facts:
    """Everything that a plan depends on; equal facts give equal plans.

    Attributes:
        gpus: GPUs in use, by index; empty for a plan on the CPU.
        models: Models in the order of registration.
        host: Cores and threads.
        policy: The rules.
        mps: "on", "off", or "auto": on unless the profiles show that it loses.
        mps_why: Why, where ``mps`` is not "auto".
        fingerprints: What the plan's reader compares to know whether it is on the machine that was planned for, by
            name of the fact.
    """

    gpus: tuple[GpuFacts, ...]
    models: tuple[ModelFacts, ...]
    host: HostFacts
    policy: Policy = Policy()
    mps: str = "auto"
    mps_why: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
