"""A new plan brought to the workers that are there: as few as possible change, and no number is given out twice."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ts_mps.guardian.change.merge import differ, keys, merge, slots_of, with_slots
from ts_mps.plan.model import Plan, PlannedGpu, Slot

GPUS = (PlannedGpu(0, "GPU-0", "H200", 48), PlannedGpu(1, "GPU-1", "H200", 48))
BERT, RANK = ("bert", "1.0"), ("rank", "1.0")


def plan(*places: tuple[str, str], **share: object) -> Plan:
    """One slot for each model and GPU."""
    slots = (Slot(number, model, "1.0", gpu, **share) for number, (model, gpu) in enumerate(places))
    return Plan(GPUS, tuple(slots))


def numbers(merged: Plan, key: tuple[str, str]) -> list[int]:
    return [slot.number for slot in slots_of(merged, key)]


OLD = plan(("bert", "GPU-0"), ("bert", "GPU-1"), ("rank", "GPU-0"))


def test_the_same_plan_changes_nobody():
    assert merge(OLD, OLD) == OLD
    assert not differ(OLD, merge(OLD, OLD))


def test_a_further_worker_gets_a_new_number_and_the_others_keep_theirs():
    new = plan(("bert", "GPU-0"), ("bert", "GPU-0"), ("bert", "GPU-1"), ("rank", "GPU-0"))
    merged = merge(OLD, new)
    assert numbers(merged, BERT) == [0, 1, 3] and numbers(merged, RANK) == [2]
    assert [slot.gpu for slot in slots_of(merged, BERT)] == ["GPU-0", "GPU-1", "GPU-0"]
    assert differ(OLD, merged)


def test_numbers_that_somebody_had_are_not_given_out_again():
    new = plan(("bert", "GPU-0"), ("bert", "GPU-1"), ("rank", "GPU-0"), ("rank", "GPU-1"))
    assert numbers(merge(OLD, new, taken={0, 1, 2, 7}), RANK) == [2, 8]


def test_of_equal_slots_those_go_whose_workers_go_anyway():
    old = plan(("bert", "GPU-0"), ("bert", "GPU-0"), ("bert", "GPU-0"))
    new = plan(("bert", "GPU-0"))
    assert numbers(merge(old, new), BERT) == [0]
    assert numbers(merge(old, new, first_out={0, 1}), BERT) == [2]


def test_another_share_is_another_slot_unless_only_the_number_of_workers_was_asked_for():
    new = plan(("bert", "GPU-0"), ("bert", "GPU-1"), ("rank", "GPU-0"), thread_percentage=50.0)
    assert numbers(merge(OLD, new), BERT) == [3, 4] and numbers(merge(OLD, new), RANK) == [5]
    assert merge(OLD, new, brothers=True).slots == OLD.slots


def test_a_further_worker_is_like_its_brothers():
    old = plan(("bert", "GPU-0"), thread_percentage=25.0, memory_limit="4G", priority=1, threads=2, sms=32)
    new = plan(("bert", "GPU-0"), ("bert", "GPU-0"), ("bert", "GPU-1"), threads=1)
    kept, here, there = merge(old, new, brothers=True).slots
    assert kept == old.slots[0]
    assert here == replace(old.slots[0], number=1)
    assert there == replace(old.slots[0], number=2, gpu="GPU-1", sms=0), "its SMs are another GPU's matter"


def test_a_model_without_brothers_gets_what_was_planned():
    new = plan(("bert", "GPU-0"), ("bert", "GPU-1"), ("rank", "GPU-0"), ("new", "GPU-1"), threads=3)
    assert merge(OLD, new, brothers=True).slots[-1] == Slot(3, "new", "1.0", "GPU-1", threads=3)


def test_one_model_at_a_time():
    new = merge(OLD, plan(("bert", "GPU-0"), ("rank", "GPU-0"), ("rank", "GPU-1")))
    half = with_slots(OLD, RANK, new, taken=())
    assert slots_of(half, BERT) == slots_of(OLD, BERT) and slots_of(half, RANK) == slots_of(new, RANK)
    assert with_slots(half, BERT, new, taken=()).slots == new.slots
    assert keys(half) == (BERT, RANK)


def test_a_place_that_a_spare_worker_took_meanwhile_is_not_planned():
    new = merge(OLD, plan(("bert", "GPU-0"), ("rank", "GPU-0"), ("rank", "GPU-1")))
    assert numbers(new, RANK) == [2, 3]
    assert numbers(with_slots(OLD, RANK, new, taken={0, 1, 2, 3}), RANK) == [2, 4]


def test_slots_that_are_numbered_once_more_do_not_get_those_of_another_model():
    new = merge(OLD, plan(("bert", "GPU-1"), ("rank", "GPU-1"), thread_percentage=50.0))
    half = with_slots(OLD, BERT, new, taken={0, 1, 2, 3})
    assert numbers(half, BERT) == [4] == numbers(new, RANK), "what rank would have had"
    assert numbers(with_slots(half, RANK, new, taken={0, 1, 2, 3}), RANK) == [5]


PLACES = st.lists(st.tuples(st.sampled_from(["bert", "rank"]), st.sampled_from(["GPU-0", "GPU-1"])), max_size=8)


@given(PLACES, PLACES, st.sets(st.integers(0, 20)), st.sets(st.integers(0, 8)), st.booleans())
def test_it_is_the_new_plan_with_numbers_of_its_own(before, after, taken, first_out, brothers):
    old, new = plan(*before), plan(*after)
    merged = merge(old, new, taken=taken, first_out=first_out, brothers=brothers)
    assert sorted((s.model, s.gpu) for s in merged.slots) == sorted((s.model, s.gpu) for s in new.slots)
    given = [slot.number for slot in merged.slots]
    assert len(set(given)) == len(given)
    step = old
    for key in {*keys(old), *keys(new)}:
        step = with_slots(step, key, merged, taken)
        assert len({slot.number for slot in step.slots}) == len(step.slots)
    assert sorted((s.model, s.gpu) for s in step.slots) == sorted((s.model, s.gpu) for s in new.slots)
    was = {slot.number: slot for slot in old.slots}
    assert all((s.model, s.gpu) == (was[s.number].model, was[s.number].gpu) for s in merged.slots if s.number in was)
    assert not any(number in taken for number in given if number not in was)
    for place in {*before, *after}:
        stay = [s for s in merged.slots if (s.model, s.gpu) == place and s.number in was]
        assert len(stay) == min(before.count(place), after.count(place)), "as many stay as can"
