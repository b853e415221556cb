"""A new plan brought to the workers that are there: who may stay keeps its slot, by number. Nothing is touched here."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace

from ts_mps.plan.model import Plan, Slot

Key = tuple[str, str | None]


def keys(plan: Plan) -> tuple[Key, ...]:
    """Name and version of every model that has slots, in the order of the slots."""
    return tuple(dict.fromkeys((slot.model, slot.version) for slot in plan.slots))


def slots_of(plan: Plan, key: Key) -> tuple[Slot, ...]:
    """The slots of one version of a model."""
    return tuple(slot for slot in plan.slots if (slot.model, slot.version) == key)


def merge(
    old: Plan, new: Plan, *, taken: Collection[int] = (), first_out: Collection[int] = (), brothers: bool = False
) -> Plan:
    """The new plan, with the numbers of the old one where a worker need not change.

    Args:
        old: The plan in force.
        new: What shall be in force, numbered from 0 on.
        taken: Numbers of slots that somebody is in, or was: no new slot gets one of them.
        first_out: Slots whose workers are the first to go, where some must.
        brothers: Only models' places on GPUs count, and their shares stay as they are: a further worker gets the share
            of those that its model has. Otherwise a worker whose share differs changes.

    Returns:
        The new plan; its slots are numbered, but not from 0 on.
    """
    left = sorted(old.slots, key=lambda slot: (slot.number in first_out, slot.number))
    fresh = max((*(slot.number for slot in old.slots), *taken), default=-1) + 1
    slots = []
    for slot in new.slots:
        match = next((one for one in left if _same(one, slot, brothers)), None)
        if match is not None:
            left.remove(match)
            slots.append(match if brothers else replace(slot, number=match.number))
            continue
        slots.append(replace(_like_brothers(slot, old.slots) if brothers else slot, number=fresh))
        fresh += 1
    return replace(new, slots=tuple(sorted(slots, key=lambda slot: slot.number)))


def with_slots(old: Plan, key: Key, new: Plan, taken: Collection[int]) -> Plan:
    """The old plan in which one model has its slots of the new one.

    Args:
        old: The plan in force.
        key: The model.
        new: What :func:`merge` made of the new plan.
        taken: Numbers of slots that somebody is in by now, or was: a worker beyond the plan may have got one that was
            free when the plans were merged. New slots are numbered once more.
    """
    others = [slot for slot in old.slots if (slot.model, slot.version) != key]
    stay = {slot.number for slot in slots_of(old, key)}
    fresh = itertools.count(max((*(slot.number for slot in old.slots), *taken), default=-1) + 1)
    mine = [slot if slot.number in stay else replace(slot, number=next(fresh)) for slot in slots_of(new, key)]
    return replace(old, slots=tuple(sorted((*others, *mine), key=lambda slot: slot.number)))


def differ(old: Plan, new: Plan) -> bool:
    """Whether any worker has to change, come or go."""
    return {slot.number for slot in old.slots} != {slot.number for slot in new.slots}


def _same(one: Slot, other: Slot, brothers: bool) -> bool:
    if (one.model, one.version, one.gpu) != (other.model, other.version, other.gpu):
        return False
    return brothers or _share(one) == _share(other)


def _share(slot: Slot) -> tuple[object, ...]:
    return slot.threads, slot.cores, slot.thread_percentage, slot.memory_limit, slot.priority


def _like_brothers(slot: Slot, slots: Sequence[Slot]) -> Slot:
    """The slot with the share of a slot of its model; what depends on the GPU is of its own GPU."""
    mine = [one for one in slots if (one.model, one.version) == (slot.model, slot.version)]
    brother = next((one for one in mine if one.gpu == slot.gpu), mine[0] if mine else None)
    if brother is None:
        return slot
    here = brother.gpu == slot.gpu
    return replace(
        slot,
        threads=brother.threads,
        thread_percentage=brother.thread_percentage,
        memory_limit=brother.memory_limit,
        priority=brother.priority,
        sms=brother.sms if here else 0,
    )
