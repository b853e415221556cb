"""What workers say of themselves in their slots, read by anyone: who they are, what they got, what they are at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ts_mps.activity import Activity, Attention
from ts_mps.files import is_locked, known_fields, read_json
from ts_mps.paths import InstancePaths
from ts_mps.plan.model import Slot
from ts_mps.processes import ProcessId


@dataclass(frozen=True)
class Proof:
    """Evidence that a worker is an MPS client: its pid stood in the client list of this server at this time."""

    server: int
    time: float


@dataclass(frozen=True)
class Share:
    """What a worker really got, as it found it when it was ready.

    Attributes:
        sms: Streaming multiprocessors that CUDA shows it; None on the CPU, or where it has not used CUDA through torch.
        thread_percentage: Under MPS, of its environment; None for the daemon's default.
        memory_limit: Under MPS, bytes of device memory that its environment allows it; None for the daemon's default.
        priority: Under MPS, 0 normal or 1 below normal; None for the daemon's default.
        cores: Host cores that it may run on.
        checked: Seconds that the numerical check of its share took; None where it has no thread percentage.
    """

    sms: int | None
    thread_percentage: float | None
    memory_limit: int | None
    priority: int | None
    cores: tuple[int, ...]
    checked: float | None = None


@dataclass(frozen=True)
class WorkerRecord:
    """What a worker says of itself in its slot.

    Attributes:
        slot: Its place and share.
        planned: False for a worker beyond the plan (scaled up through TorchServe's API).
        pid: Process id.
        started: Its start in clock ticks since boot, so that a pid used again is not taken for it.
        state: "loading", then "ready".
        since: Seconds since the epoch at which the state was reached.
        seat: Its seat on the GPU; None without MPS.
        proof: That it is an MPS client; None without MPS, or while it loads.
        socket: TorchServe's socket to it, which outlives a SIGKILL.
        got: What it really got of its share; None while it loads.
        listens: Whether it can be asked to leave (:mod:`ts_mps.torchserve.listening`).
        clock: The same as ``since`` by time.monotonic(), to reckon with: nobody sets it. 0 in the record of an earlier
            version.
    """

    slot: Slot
    planned: bool
    pid: int
    started: int
    state: str
    since: float
    seat: int | None = None
    proof: Proof | None = None
    socket: str | None = None
    got: Share | None = None
    listens: bool = False
    clock: float = 0.0

    @property
    def process(self) -> ProcessId:
        """Its process."""
        return ProcessId(self.pid, self.started)


def workers(instance: InstancePaths) -> Iterator[WorkerRecord]:
    """Every living worker of an instance, by its slot."""
    return (record for record, living in records(instance) if living)


def records(instance: InstancePaths) -> Iterator[tuple[WorkerRecord, bool]]:
    """The last worker of every slot that had one, and whether it lives; without those of :func:`unreadable`."""
    for lock in sorted(instance.slots.glob("*.lock")):
        # The record after the lock: whoever takes the slot writes its own record later.
        living = is_locked(lock)
        record = _record(lock.with_suffix(".json"))
        if record is not None:
            yield record, living


def unreadable(instance: InstancePaths) -> tuple[Path, ...]:
    """The records that a worker of another version wrote and that say too little for this one."""
    return tuple(path for path in sorted(instance.slots.glob("*.json")) if _record(path) is None)


def _record(path: Path) -> WorkerRecord | None:
    """The record in a file; None if there is none that can be read.

    Workers are started from disk: after an upgrade in place they are newer than the guardian that reads this.
    """
    value = read_json(path)
    if value is None:
        return None
    with suppress(KeyError, TypeError):
        value["slot"] = Slot(**{**known_fields(Slot, value["slot"]), "cores": tuple(value["slot"]["cores"])})
        if proof := value.get("proof"):
            value["proof"] = Proof(**known_fields(Proof, proof))
        if got := value.get("got"):
            value["got"] = Share(**{**known_fields(Share, got), "cores": tuple(got["cores"])})
        return WorkerRecord(**known_fields(WorkerRecord, value))
    return None


def batch_of(instance: InstancePaths, number: int) -> int | None:
    """The number of the batch that the worker in this slot is inside; None between batches."""
    return Activity.batch(activity_file(instance, number))


def sockets(instance: InstancePaths) -> tuple[Path, ...]:
    """TorchServe's sockets to the workers that hold or held a slot; a worker that is killed leaves its own behind."""
    records = (read_json(path) for path in sorted(instance.slots.glob("*.json")))
    return tuple(Path(record["socket"]) for record in records if record and record.get("socket"))


def busy(instance: InstancePaths) -> tuple[WorkerRecord, ...]:
    """The living workers that are inside a batch."""
    return tuple(w for w in workers(instance) if Activity.is_busy(activity_file(instance, w.slot.number)))


def batches_taken(instance: InstancePaths) -> int:
    """Batches that the workers in all slots have taken; another number than before means that there is traffic."""
    return sum(Activity.taken(path) for path in instance.slots.glob("*.activity"))


def ask(instance: InstancePaths, number: int, attention: Attention, secret: int = 0) -> None:
    """Ask the worker in this slot for its attention.

    Raises:
        OSError: Nobody has ever been there, or the last one is gone.
    """
    Activity.ask(activity_file(instance, number), attention, secret)


def is_parked(instance: InstancePaths, number: int) -> bool:
    """Whether the worker in this slot waits with a word of the guardian in its hands."""
    return Activity.is_parked(activity_file(instance, number))


def activity_file(instance: InstancePaths, number: int) -> Path:
    """Where the page of the worker in a slot is found."""
    return instance.slots / f"{number:03}.activity"
