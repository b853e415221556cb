"""What one look saw, as data: all that :mod:`ts_mps.guardian.watch.judge` knows of the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ts_mps.events import Event
from ts_mps.processes import ProcessId

#: States of a daemon in which what it says is of now.
ANSWERING = frozenset({"running", "adopted"})


@dataclass(frozen=True)
class WorkerSeen:
    """A living worker, by its slot's record.

    Attributes:
        process: Its process.
        slot: Number of its slot.
        model: Registered model name.
        version: Its version; empty where it is not known.
        planned: Whether the slot is of the plan.
        gpu: UUID of its GPU; None on the CPU.
        ready: Whether it has loaded, and with MPS proven itself.
        server: Pid of the MPS server in whose client list it found itself; None without MPS, or while it loads.
        batch: Number of the batch that it is inside; None between batches, :data:`ts_mps.activity.UNKNOWN` where it
            does not let itself be looked at.
    """

    process: ProcessId
    slot: int
    model: str
    version: str
    planned: bool
    gpu: str | None
    ready: bool
    server: int | None = None
    batch: int | None = None


@dataclass(frozen=True)
class GpuSeen:
    """A GPU in use.

    Attributes:
        uuid: NVML's UUID.
        index: NVML's index.
        daemon: "running" or "adopted"; "gone"; "silent" where it did not answer this look; "off" without MPS.
        asked: Whether the daemon was asked in this very look. If not, what follows is what it said last.
        server: State of its server as MPS gives it; "none" before the first client, "" where it never answered.
        servers: Pids of its servers.
        clients: Pids in their client lists.
        strangers: Clients that are no workers but children of this instance, or left by one whose guardian is dead;
            looked up only while a server is in FAULT.
        cap: Clients that the server takes; None without MPS.
        lost: Why the GPU cannot be used at all, as a sentence; empty if it can.
    """

    uuid: str
    index: int
    daemon: str
    asked: bool = False
    server: str = ""
    servers: frozenset[int] = frozenset()
    clients: frozenset[int] = frozenset()
    strangers: tuple[ProcessId, ...] = ()
    cap: int | None = None
    lost: str = ""

    @property
    def answers(self) -> bool:
        """Whether its daemon has answered in this look."""
        return self.asked and self.daemon in ANSWERING


#: Why a worker was asked to leave: it is replaced, or there shall be fewer.
ROLLED, SCALED_DOWN = "rolled", "scaled-down"


@dataclass(frozen=True)
class Underway:
    """A change of the instance that its guardian is making.

    Attributes:
        text: What it is, as a part of a sentence; empty where there is none.
        models: Models that are being changed now.
        asked: Pid -> why this worker was asked to leave, by this change or the last one.
    """

    text: str = ""
    models: frozenset[str] = frozenset()
    asked: Mapping[int, str] = field(default_factory=dict)


#: The usual.
NO_CHANGE = Underway()


@dataclass(frozen=True)
class Place:
    """A slot of the plan: a place where a worker should be."""

    slot: int
    model: str
    version: str
    gpu: str | None


@dataclass(frozen=True)
class Seen:
    """One look.

    Attributes:
        java: Whether TorchServe's frontend lives.
        gpus: GPUs in use.
        workers: Living workers that hold a slot.
        places: Slots of the plan.
        departed: The last worker of every slot that is free: so one that came and went between two looks is seen too.
        told: What was recorded since the last look, by the workers about themselves and by the guardian.
        tried: Model -> when a worker of it last failed to load, seconds of time.monotonic().
        timeouts: Model -> seconds after which TorchServe kills a worker that does not answer; only models that were
            asked about.
        busy: What is still being acted upon, by GPU or model; nothing else may be done to it meanwhile.
        change: What is being changed on purpose.
        scaled: Model and version -> the number of workers that TorchServe was last asked for by the watch, and took.
        unlearnt: Models of which TorchServe was asked for the timeout and has not answered; what ``timeouts`` says of
            them is of before.
    """

    java: bool
    gpus: tuple[GpuSeen, ...]
    workers: tuple[WorkerSeen, ...]
    places: tuple[Place, ...]
    departed: tuple[WorkerSeen, ...] = ()
    told: tuple[Event, ...] = ()
    tried: Mapping[str, float] = field(default_factory=dict)
    timeouts: Mapping[str, float] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()
    change: Underway = NO_CHANGE
    scaled: Mapping[tuple[str, str], int] = field(default_factory=dict)
    unlearnt: frozenset[str] = frozenset()
