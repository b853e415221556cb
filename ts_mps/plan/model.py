"""The plan as data: GPUs, models, and one slot for every worker, each number with the constraint that set it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: Version of the plan's JSON form; raised when a field changes its meaning.
PLAN_VERSION = 2


@dataclass(frozen=True)
class PlannedGpu:
    """A GPU that workers may use.

    Attributes:
        index: NVML's index, for people.
        uuid: NVML's UUID, for programs.
        name: The product's name.
        cap: MPS clients (CUDA contexts) that one server takes on this GPU; None where MPS is off.
        pipe: CUDA_MPS_PIPE_DIRECTORY of the daemon that serves this GPU; None where MPS is off.
        cap_why: Where the cap comes from.
        reserve: Clients of the cap that the plan leaves free.
        attached: Clients that were there already.
        clients: Clients that the plan adds.
        memory_total: Bytes; 0 where not known.
        memory_budget: Bytes that the plan may give to workers; 0 where not known.
        memory_planned: Bytes that the plan's workers are expected to hold.
    """

    index: int
    uuid: str
    name: str
    cap: int | None = None
    pipe: str | None = None
    cap_why: str = ""
    reserve: int = 0
    attached: int = 0
    clients: int = 0
    memory_total: int = 0
    memory_budget: int = 0
    memory_planned: int = 0

    @property
    def label(self) -> str:
        """How sentences name this GPU."""
        return f"GPU {self.index} ({self.name}, {self.uuid[:12]})"


@dataclass(frozen=True)
class PlannedModel:
    """What a model gets, and why.

    Attributes:
        name: Registered model name.
        version: Its version, if known.
        workers: Workers over all GPUs.
        why: The constraint that set their number, as a sentence.
        memory: Bytes of GPU memory of one worker; 0 on the CPU or where nothing is known.
        memory_source: "profile", "config", "estimate", or "" where nothing is known.
        requests_per_second: Predicted from the profile, beside the other models of its GPUs; None without a profile.
    """

    name: str
    version: str | None
    workers: int
    why: str
    memory: int = 0
    memory_source: str = ""
    requests_per_second: float | None = None


@dataclass(frozen=True)
class Slot:
    """The place of one worker.

    Attributes:
        number: Index in the plan; a worker beyond the plan gets a higher one.
        model: The registered model name.
        version: The model's version; None where the archive cannot be read beforehand (a URL).
        gpu: UUID of its GPU; None for a worker on the CPU.
        threads: Intra-op threads for OpenMP and torch; 0 leaves the user's OMP_NUM_THREADS alone.
        cores: Host cores it is pinned to; empty for no pinning.
        thread_percentage: CUDA_MPS_ACTIVE_THREAD_PERCENTAGE in (0, 100], or None for the daemon's default.
        memory_limit: CUDA_MPS_PINNED_DEVICE_MEM_LIMIT of its one visible device, such as "4G"; None for none.
        priority: CUDA_MPS_CLIENT_PRIORITY, 0 normal or 1 below normal; None for the daemon's default.
        sms: Streaming multiprocessors that the thread percentage is expected to leave; 0 where not known.
        why: Why it is on this GPU with this share, as a sentence.
    """

    number: int
    model: str
    version: str | None
    gpu: str | None
    threads: int = 0
    cores: tuple[int, ...] = ()
    thread_percentage: float | None = None
    memory_limit: str | None = None
    priority: int | None = None
    sms: int = 0
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """All GPUs in use, all models, all workers.

    Attributes:
        gpus: GPUs in use, by index.
        slots: A place for each worker, by number.
        models: What each model gets, in the order of registration.
        mps: Whether workers are MPS clients.
        mps_why: Why, as a sentence.
        warnings: What the plan's reader should know, one sentence each.
        objective: The value that the plan was chosen for; comparable between plans for the same models.
        machine: What was planned for, by name of the fact; a plan is refused where they differ.
    """

    gpus: tuple[PlannedGpu, ...]
    slots: tuple[Slot, ...]
    models: tuple[PlannedModel, ...] = ()
    mps: bool = True
    mps_why: str = ""
    warnings: tuple[str, ...] = ()
    objective: float = 0.0
    machine: Mapping[str, str] = field(default_factory=dict)

    def gpu(self, uuid: str) -> PlannedGpu:
        """The GPU with this UUID.

        Raises:
            KeyError: The plan has no such GPU.
        """
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise KeyError(uuid)

    def as_json(self) -> dict[str, Any]:
        """The plan's JSON form."""
        return {"version": PLAN_VERSION, **asdict(self)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Plan:
        """Read the JSON form back.

        Raises:
            ValueError: It is of another version, or is not a plan.
        """
        if value.get("version") != PLAN_VERSION:
            raise ValueError(f"a plan of version {value.get('version')}, this ts-mps reads version {PLAN_VERSION}")
        try:
            return Plan(
                gpus=tuple(PlannedGpu(**gpu) for gpu in value["gpus"]),
                slots=tuple(Slot(**{**slot, "cores": tuple(slot["cores"])}) for slot in value["slots"]),
                models=tuple(PlannedModel(**model) for model in value["models"]),
                mps=bool(value["mps"]),
                mps_why=str(value["mps_why"]),
                warnings=tuple(value["warnings"]),
                objective=float(value["objective"]),
                machine=dict(value["machine"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is not a plan: {error}") from error
