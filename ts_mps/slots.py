"""The plan's places as files held by flock: claimed by a worker, free as soon as it dies.

A **slot** belongs to an instance and says what its worker gets (GPU, threads, cores). With MPS a worker holds a
**seat** beside it, which belongs to the GPU (:mod:`ts_mps.seats`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from ts_mps.activity import Activity
from ts_mps.errors import PlanError
from ts_mps.files import is_locked, try_lock, write_json
from ts_mps.holds import held_back
from ts_mps.paths import Home, InstancePaths
from ts_mps.plan.model import Plan, PlannedGpu, Slot
from ts_mps.processes import myself
from ts_mps.seats import holders_told, seats_taken, take_seat
from ts_mps.worker_records import Proof, Share, WorkerRecord, activity_file

#: How long a worker looks for a planned slot before it takes an extra one. TorchServe starts a worker's successor at
#: once, and a dying process holds its slot until the driver has freed its GPU memory.
GRACE_SECONDS = 1.0
#: Workers beyond the plan that one instance may have; only a bound for the search, the seats are the limit.
EXTRA_SLOTS = 512


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
        self.activity = Activity.create(activity_file(instance, record.slot.number))
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
    return max(candidates, key=lambda gpu: ((gpu.cap or 0) - seats_taken(home.gpu(gpu.uuid)), -gpu.index))


def _lock_file(instance: InstancePaths, number: int) -> Path:
    return instance.slots / f"{number:03}.lock"


def _record_file(instance: InstancePaths, number: int) -> Path:
    return instance.slots / f"{number:03}.json"
