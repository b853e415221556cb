"""The plan as data: GPUs, and one slot for every worker that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: Version of the plan's JSON form; raised when a field changes its meaning.
PLAN_VERSION = 1


@dataclass(frozen=True)
class PlannedGpu:
    """A GPU that workers may use.

    Attributes:
        index: NVML's index, for people.
        uuid: NVML's UUID, for programs.
        name: The product's name.
        cap: MPS clients (CUDA contexts) that one server takes on this GPU; None where MPS is off.
        pipe: CUDA_MPS_PIPE_DIRECTORY of the daemon that serves this GPU; None where MPS is off.
    """

    index: int
    uuid: str
    name: str
    cap: int | None = None
    pipe: str | None = None

    @property
    def label(self) -> str:
        """How sentences name this GPU."""
        return f"GPU {self.index} ({self.name}, {self.uuid[:12]})"


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
    """

    number: int
    model: str
    version: str | None
    gpu: str | None
    threads: int = 0
    cores: tuple[int, ...] = ()
    thread_percentage: float | None = None
    memory_limit: str | None = None


@dataclass(frozen=True)
class Plan:
    """All GPUs in use and all workers asked for."""

    gpus: tuple[PlannedGpu, ...]
    slots: tuple[Slot, ...]

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
            ValueError: The form is of another version.
        """
        if value.get("version") != PLAN_VERSION:
            raise ValueError(f"a plan of version {value.get('version')}, this ts-mps reads version {PLAN_VERSION}")
        return Plan(
            gpus=tuple(PlannedGpu(**gpu) for gpu in value["gpus"]),
            slots=tuple(Slot(**{**slot, "cores": tuple(slot["cores"])}) for slot in value["slots"]),
        )
