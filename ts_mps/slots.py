"""The plan's places as files held by flock: claimed by a worker, listed by anyone, free as soon as the worker dies.

A **slot** belongs to an instance and says what its worker gets (GPU, threads, cores). With MPS a worker holds a
**seat** beside it, which belongs to the GPU (:mod:`ts_mps.seats`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ts_mps.activity import Activity, Attention
from ts_mps.errors import PlanError
from ts_mps.files import is_locked, known_fields, read_json, try_lock, write_json
from ts_mps.holds import held_back
from ts_mps.paths import Home, InstancePaths
from ts_mps.plan.model import Plan, PlannedGpu, Slot
from ts_mps.processes import ProcessId, myself
from ts_mps.seats import holders_told, seat_holders, take_seat

#: How long a worker looks for a planned slot before it takes an extra one. TorchServe starts a worker's successor at
#: once, and a dying process holds its slot until the driver has freed its GPU memory.
GRACE_SECONDS = 1.0
#: Workers beyond the plan that one instance may have; only a bound for the search, the seats are the limit.
EXTRA_SLOTS = 512


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


class Claim:
    """A slot, and with MPS a seat, held by this process until it dies.

    Args:
        instance: Where the slot's files are.
        record: What is known at the claim.
        descriptors: The open files that hold the locks; they live as long as this object.
    """

    def __init__(self, instance: InstancePaths, record: WorkerRecord, descriptors: tuple[int, ...]) -> None:
        self._instance = instance
        self._descriptors = descriptors
        # A child that a handler forks must not hold slot and seat when the worker is long dead.
        os.register_at_fork(after_in_child=self.release)
        self.record = record
        self.activity = Activity.create(_activity_file(instance, record.slot.number))
        self._save()

    def ready(self, proof: Proof | None, got: Share | None = None, *, listens: bool = False) -> None:
        """The model is loaded, with MPS the process is a proven client, and this is what it got."""
        self.record = replace(
            self.record,
            state="ready",
            since=time.time(),
            clock=time.monotonic(),
            proof=proof,
            got=got,
            listens=listens,
        )
        self._save()

    def _save(self) -> None:
        write_json(_record_file(self._instance, self.record.slot.number), asdict(self.record))

    def release(self) -> None:
        """Let go of slot and seat; the process's death does the same."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = ()


def claim(
    home: Home,
    instance: InstancePaths,
    plan: Plan,
    model: str,
    version: str | None,
    *,
    on_gpu: bool,
    socket: str | None = None,
    grace: float = GRACE_SECONDS,
) -> Claim:
    """Take the first free slot of a model for this process, and with MPS a seat on the slot's GPU.

    Args:
        home: The runtime folder.
        instance: The instance that started this worker.
        plan: Its plan.
        model: Registered model name.
        version: Model version, if known.
        on_gpu: Whether TorchServe gave this worker a GPU.
        socket: TorchServe's socket to this worker.
        grace: Seconds to look for a planned slot before taking one beyond the plan.

    Raises:
        PlanError: Every seat of the GPU is taken, or the model's free slots are held back; the sentence says by whom,
            or why.
        OSError: The slot's files cannot be written.
    """
    mine = [slot for slot in plan.slots if slot.model == model and version == slot.version]
    mine = mine or [slot for slot in plan.slots if slot.model == model]
    numbers = {slot.number for slot in mine}
    deadline = time.monotonic() + (grace if mine else 0.0)
    while True:
        holds = held_back(instance)
        for slot in mine:
            taken = None if slot.number in holds else try_lock(_lock_file(instance, slot.number))
            if taken is not None:
                return _seat(home, instance, plan, slot, True, taken, socket)
        # A worker whose place is held back must not go beyond the plan instead.
        waits = [h for n, h in holds.items() if n in numbers and not is_locked(_lock_file(instance, n))]
        if time.monotonic() >= deadline:
            if not waits:
                break
            if not any(hold.soon(time.monotonic()) for hold in waits):
                raise PlanError(
                    f"The free places of model {model} are held back: {waits[0].reason}",
                    "See ts-mps status and ts-mps events; they are given out again after a while, or by a restart.",
                )
        time.sleep(0.05)
    pattern = mine[0] if mine else Slot(0, model, version, None, threads=1)
    gpu = _roomiest(home, plan, {slot.gpu for slot in mine}) if on_gpu and plan.gpus else None
    # Slots keep their numbers when the plan is changed, so these need not be as many as there are slots.
    first = max((slot.number for slot in plan.slots), default=-1) + 1
    for number in range(first, first + EXTRA_SLOTS):
        taken = try_lock(_lock_file(instance, number))
        if taken is not None:
            return _seat(home, instance, plan, _beyond(pattern, number, version, gpu), False, taken, socket)
    raise PlanError(f"Instance {instance.name} already has {EXTRA_SLOTS} workers beyond its plan.", "Scale down first.")


def _beyond(pattern: Slot, number: int, version: str | None, gpu: PlannedGpu | None) -> Slot:
    """A slot beyond the plan, with the limits of a planned one of its model."""
    uuid = gpu.uuid if gpu else None
    # The SMs that a percentage leaves are another number on another GPU.
    sms = pattern.sms if pattern.gpu == uuid else 0
    why = "It was asked for beyond the plan through TorchServe's management API."
    return replace(pattern, number=number, version=version, gpu=uuid, sms=sms, why=why)


def _seat(
    home: Home, instance: InstancePaths, plan: Plan, slot: Slot, planned: bool, lock: int, socket: str | None
) -> Claim:
    gpu = plan.gpu(slot.gpu) if slot.gpu else None
    me = myself()
    since, clock = time.time(), time.monotonic()
    record = WorkerRecord(slot, planned, me.pid, me.started, "loading", since, socket=socket, clock=clock)
    if gpu is None or gpu.cap is None:
        return Claim(instance, record, (lock,))
    paths = home.gpu(gpu.uuid)
    seat = take_seat(paths, gpu.cap, instance.name, slot.model)
    if seat is not None:
        number, held = seat
        return Claim(instance, replace(record, seat=number), (lock, held))
    os.close(lock)
    raise PlanError(
        f"{gpu.label} already has {gpu.cap} of {gpu.cap} MPS clients ({holders_told(paths)}), so a further worker of "
        f"model {slot.model} was refused before it touched CUDA; the others serve on.",
        f"Scale down first, for example PUT /models/{slot.model}?min_worker=N&max_worker=N with a smaller N, "
        "or give the model another GPU.",
    )


def _roomiest(home: Home, plan: Plan, planned_on: Iterable[str | None]) -> PlannedGpu:
    """The GPU with most free seats, of those that the model is planned on, else of all."""
    wanted = set(planned_on)
    candidates = [gpu for gpu in plan.gpus if gpu.uuid in wanted] or list(plan.gpus)
    return max(candidates, key=lambda gpu: ((gpu.cap or 0) - len(seat_holders(home.gpu(gpu.uuid))), -gpu.index))


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
    return Activity.batch(_activity_file(instance, number))


def sockets(instance: InstancePaths) -> tuple[Path, ...]:
    """TorchServe's sockets to the workers that hold or held a slot; a worker that is killed leaves its own behind."""
    records = (read_json(path) for path in sorted(instance.slots.glob("*.json")))
    return tuple(Path(record["socket"]) for record in records if record and record.get("socket"))


def busy(instance: InstancePaths) -> tuple[WorkerRecord, ...]:
    """The living workers that are inside a batch."""
    return tuple(w for w in workers(instance) if Activity.is_busy(_activity_file(instance, w.slot.number)))


def batches_taken(instance: InstancePaths) -> int:
    """Batches that the workers in all slots have taken; another number than before means that there is traffic."""
    return sum(Activity.taken(path) for path in instance.slots.glob("*.activity"))


def ask(instance: InstancePaths, number: int, attention: Attention, secret: int = 0) -> None:
    """Ask the worker in this slot for its attention.

    Raises:
        OSError: Nobody has ever been there, or the last one is gone.
    """
    Activity.ask(_activity_file(instance, number), attention, secret)


def is_parked(instance: InstancePaths, number: int) -> bool:
    """Whether the worker in this slot waits with a word of the guardian in its hands."""
    return Activity.is_parked(_activity_file(instance, number))


def _lock_file(instance: InstancePaths, number: int) -> Path:
    return instance.slots / f"{number:03}.lock"


def _record_file(instance: InstancePaths, number: int) -> Path:
    return instance.slots / f"{number:03}.json"


def _activity_file(instance: InstancePaths, number: int) -> Path:
    return instance.slots / f"{number:03}.activity"
