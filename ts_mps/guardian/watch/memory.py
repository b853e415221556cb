"""What the watch remembers between two looks, and what it may decide to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ts_mps.events import Event
from ts_mps.guardian.watch.seen import WorkerSeen
from ts_mps.holds import Hold
from ts_mps.processes import ProcessId


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a GPU and not yet made good.

    Attributes:
        kind: "server-fault", "server-gone", "daemon-gone", "daemon-hung" or "gpu-lost".
        since: When it was found.
        victims: Slot -> the worker that it had then; all of these slots must be served again before it is over.
        tries: How often its daemon was brought back.
        next_try: Not before this time is it tried again.
    """

    kind: str
    since: float
    victims: Mapping[int, ProcessId] = field(default_factory=dict)
    tries: int = 0
    next_try: float = 0.0


@dataclass(frozen=True)
class Ended:
    """That a process was ended by the watch.

    Attributes:
        cause: Why, in words with hyphens.
        gpu: UUID of its GPU.
        at: When it was last tried.
    """

    cause: str
    gpu: str
    at: float


@dataclass(frozen=True)
class Absence:
    """A slot whose worker went.

    Attributes:
        since: When that was seen.
        cause: Why, in words with hyphens.
    """

    since: float
    cause: str


@dataclass(frozen=True)
class Memory:
    """All that is carried from look to look. Times are seconds of time.monotonic(), here as in all of its parts.

    Attributes:
        workers: Slot -> its worker at the last look.
        departed: Slot -> its last worker that is known to have gone.
        servers: GPU -> pids of its servers when it last answered.
        faults: GPU -> what is wrong with it.
        absent: Slot -> why its worker went.
        lost_loading: Model -> when a worker of it last went before it had loaded: TorchServe may try again for long.
        ended: Processes that were ended by the watch and are not gone yet. None is terminated twice.
        unattached: Worker -> in how many looks it was ready and no client.
        silent: GPU -> looks in a row in which its daemon did not answer.
        batches: Worker -> the batch that it is inside, and since when that was seen.
        causes: Pid -> what a worker said of its own end.
        crashes: Model and GPU -> when its workers crashed, and the share of them that did (1 for all of them).
        holds: Slot -> why it takes no worker.
        parked: Models and versions that were scaled to no worker because every place of theirs is held back, until
            TorchServe has been asked for their workers again.
        tried: Model and version -> when something was last done to get its workers back.
        learnt: Model -> its workers when TorchServe was last asked after how long it kills them, and when that was.
        blamed: GPU -> the beginning of the fault that a model has been blamed for.
        restarts: Model -> cause -> workers that were replaced.
        counts: "KIND GPU" -> how often a fault happened.
        recoveries: Seconds of the last recoveries, newest last.
        java_since: Since when java lives; None while it does not.
    """

    workers: Mapping[int, WorkerSeen] = field(default_factory=dict)
    departed: Mapping[int, ProcessId] = field(default_factory=dict)
    servers: Mapping[str, frozenset[int]] = field(default_factory=dict)
    faults: Mapping[str, Fault] = field(default_factory=dict)
    absent: Mapping[int, Absence] = field(default_factory=dict)
    lost_loading: Mapping[str, float] = field(default_factory=dict)
    ended: Mapping[ProcessId, Ended] = field(default_factory=dict)
    unattached: Mapping[ProcessId, int] = field(default_factory=dict)
    silent: Mapping[str, int] = field(default_factory=dict)
    batches: Mapping[ProcessId, tuple[int, float]] = field(default_factory=dict)
    causes: Mapping[int, str] = field(default_factory=dict)
    crashes: Mapping[tuple[str, str | None], tuple[tuple[float, float], ...]] = field(default_factory=dict)
    holds: Mapping[int, Hold] = field(default_factory=dict)
    parked: frozenset[tuple[str, str]] = frozenset()
    tried: Mapping[tuple[str, str], float] = field(default_factory=dict)
    learnt: Mapping[str, tuple[frozenset[ProcessId], float]] = field(default_factory=dict)
    blamed: Mapping[str, float] = field(default_factory=dict)
    restarts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    recoveries: tuple[float, ...] = ()
    java_since: float | None = None

    def kept(self, slots: frozenset[int]) -> Memory:
        """What still counts under a plan with these slots: workers of others are not waited for."""
        return replace(
            self,
            faults={
                gpu: replace(fault, victims={slot: was for slot, was in fault.victims.items() if slot in slots})
                for gpu, fault in self.faults.items()
            },
            absent={slot: absence for slot, absence in self.absent.items() if slot in slots},
            holds={slot: hold for slot, hold in self.holds.items() if slot in slots},
        )


@dataclass(frozen=True)
class EndProcesses:
    """End processes of one GPU: ``terminate_client`` once for each that is a client, then SIGKILL."""

    gpu: str
    processes: tuple[ProcessId, ...]
    through_mps: bool = True

    @property
    def about(self) -> str:
        """What it acts upon."""
        return self.gpu


@dataclass(frozen=True)
class RestoreDaemon:
    """Bring a GPU's control daemon back."""

    gpu: str

    @property
    def about(self) -> str:
        """What it acts upon."""
        return self.gpu


@dataclass(frozen=True)
class ScaleModel:
    """Ask TorchServe for this many workers of a model: 0 makes it stop starting them."""

    model: str
    version: str
    workers: int

    @property
    def about(self) -> str:
        """What it acts upon."""
        return self.model


@dataclass(frozen=True)
class ReviveModel:
    """Have TorchServe start workers of a model again where it gave up.

    Attributes:
        model: Registered model name.
        version: Its version.
        planned: Workers of it that the plan has, without places that are held back.
        living: Workers of it that live.
        last: When TorchServe is known to have last tried to start one, seconds of time.monotonic().
    """

    model: str
    version: str
    planned: int
    living: int
    last: float

    @property
    def about(self) -> str:
        """What it acts upon."""
        return self.model


@dataclass(frozen=True)
class LearnTimeout:
    """Ask TorchServe after how many seconds it kills a worker of this model."""

    model: str

    @property
    def about(self) -> str:
        """What it acts upon."""
        return self.model


Action = EndProcesses | RestoreDaemon | ScaleModel | ReviveModel | LearnTimeout


@dataclass(frozen=True)
class Judgement:
    """What came of one look.

    Attributes:
        memory: What to remember; its ``holds`` are to be put in force where they differ from before.
        actions: What to do, in this order.
        events: What to record.
        ask: GPUs whose daemons are to be asked at the next look.
    """

    memory: Memory
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    ask: frozenset[str] = frozenset()
