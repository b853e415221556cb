"""The courses that a change takes: a rolling restart, and a plan brought into force model by model."""

from __future__ import annotations

from dataclasses import replace

from ts_mps.errors import NotReadyError
from ts_mps.guardian.change.crew import Crew
from ts_mps.guardian.change.merge import Key, keys, slots_of, with_slots
from ts_mps.guardian.change.stage import Stage
from ts_mps.plan.model import Plan, PlannedGpu
from ts_mps.seats import seats_taken
from ts_mps.torchserve.threads import working
from ts_mps.worker_records import records


def roll(stage: Stage, model: Key | None) -> None:
    """Replace every worker of a model, or of all models, one after the other.

    Raises:
        TsMpsError: A worker did not leave, or its successor did not come; the rest is as it was.
    """
    crews = [Crew(stage, key) for key in keys(stage.plan) if model in (None, key)]
    for crew in crews:
        crew.check_listening()
    for crew in crews:
        stage.models.add(crew.key[0])
        _roll(stage, crew, crew.pids())
        stage.models.discard(crew.key[0])


def bring_in(stage: Stage, new: Plan, about: Key | None = None) -> None:
    """Put a new plan in force, model by model: those with fewer workers first, which makes room for the others.

    Args:
        stage: The change.
        new: The plan, merged with the one in force (:func:`ts_mps.guardian.change.merge.merge`).
        about: A model that is brought to its plan even where that is the same: TorchServe may have been told otherwise.

    Raises:
        TsMpsError: As :func:`roll`; models that were done by then stay as the new plan has them.
    """
    changed = [key for key in keys(stage.plan) if key == about or slots_of(stage.plan, key) != slots_of(new, key)]
    crews = [Crew(stage, key) for key in changed]
    for crew in crews:
        crew.check_listening()
    for crew in sorted(crews, key=lambda crew: len(slots_of(new, crew.key)) - len(slots_of(stage.plan, crew.key))):
        stage.between()
        stage.models.add(crew.key[0])
        _reshape(stage, crew, new)
        stage.models.discard(crew.key[0])
    stage.adopt(replace(new, slots=stage.plan.slots))


def _reshape(stage: Stage, crew: Crew, new: Plan) -> None:
    """One model: the number of workers first, then those whose share or GPU is another."""
    wanted = len(slots_of(new, crew.key))
    stays = {slot.number for slot in slots_of(stage.plan, crew.key)} & {slot.number for slot in new.slots}
    if wanted == 1 and not any(worker.slot.number in stays for worker in crew.records()) and _spare(stage, crew):
        # With a second worker beside it, which is there before the plan is: it must not take the only place.
        _to(stage, crew, 2)
        _adopt(stage, crew, new)
        _replace(stage, crew, {_first(crew)}, 2, spare=True)
        _to(stage, crew, 1)
        return
    _adopt(stage, crew, new)
    _to(stage, crew, wanted)
    numbers = {slot.number for slot in slots_of(stage.plan, crew.key)}
    elsewhere = {worker.pid for worker in crew.records() if worker.slot.number not in numbers}
    _roll(stage, crew, elsewhere, spare=False)


def _first(crew: Crew) -> int:
    """Pid of the worker of the first thread that works.

    Raises:
        NotReadyError: None does.
    """
    for thread in crew.threads():
        if not thread.gave_up:
            return thread.pid
    raise NotReadyError(
        f"TorchServe starts no worker of model {crew.name} any more; the change ends here.",
        "The guardian has it start new ones after a while; see ts-mps status, and try again then.",
    )


def _adopt(stage: Stage, crew: Crew, new: Plan) -> None:
    """Put one model's part of a plan in force."""
    taken = {record.slot.number for record, _ in records(stage.prepared.paths)}
    stage.adopt(with_slots(stage.plan, crew.key, new, taken))


def _to(stage: Stage, crew: Crew, count: int) -> None:
    """As many workers as this, whatever there were."""
    now = working(crew.threads())
    if count < now:
        stage.say(f"Model {crew.name}: {now - count} of {now} workers end.")
        crew.shrink(count)
    elif count > now:
        stage.say(f"Model {crew.name}: {count - now} more than {now} worker(s) load.")
        crew.grow(count)
        crew.wait(count)


def _roll(stage: Stage, crew: Crew, old: set[int], *, spare: bool = True) -> None:
    """Replace these workers, one after the other."""
    if not old:
        return
    count = len(crew.pids())
    if count == 1 and spare and _spare(stage, crew):
        stage.between()
        _to(stage, crew, 2)
        _replace(stage, crew, old, 2, spare=True)
        _to(stage, crew, 1)
        return
    _replace(stage, crew, old, count)


def _replace(stage: Stage, crew: Crew, old: set[int], count: int, *, spare: bool = False) -> None:
    """Replace these of so many workers; with a spare one beside a single one it does not end in the middle."""
    total, left = len(old), set(old)
    if count == 1:
        stage.say(f"Model {crew.name} has one worker: requests wait in TorchServe's queue while it is replaced.")
    while left := left & crew.pids():
        if not spare:
            stage.between()
        crew.wait(count)
        gone = crew.send_away(left)
        crew.wait(count, without=[gone])
        left.discard(gone)
        stage.say(f"Model {crew.name}: {total - len(left)} of {total} workers replaced.")


def _spare(stage: Stage, crew: Crew) -> bool:
    """Whether there is room for one more worker beside the plan's: on the CPU always."""
    model = next(model for model in stage.plan.models if (model.name, model.version) == crew.key)
    on = {slot.gpu for slot in slots_of(stage.plan, crew.key)}
    gpus = [gpu for gpu in stage.plan.gpus if gpu.uuid in on]
    return not gpus or any(_room(stage, gpu, model.memory) for gpu in gpus)


def _room(stage: Stage, gpu: PlannedGpu, memory: int) -> bool:
    taken = seats_taken(stage.prepared.home.gpu(gpu.uuid))
    if gpu.cap is not None and taken >= gpu.cap:
        return False
    return not gpu.memory_budget or gpu.memory_planned + memory <= gpu.memory_budget
