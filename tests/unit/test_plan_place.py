from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import facts, fixed, gpu, model

from ts_mps.errors import PlanError
from ts_mps.plan.facts import HostFacts, ModelFacts
from ts_mps.plan.model import Plan
from ts_mps.plan.planner import make_plan

HOST = HostFacts(cores=tuple(range(16)))
TWO = [gpu(0), gpu(1)]


def gpus_of(plan):
    return [slot.gpu for slot in plan.slots]


def test_workers_spread_from_gpu_0():
    assert gpus_of(make_plan(facts([model(workers=fixed(3))], TWO))) == ["GPU-0", "GPU-1", "GPU-0"]


def test_other_clients_on_a_gpu_send_workers_elsewhere():
    busy = [gpu(0, attached=5), gpu(1)]
    assert Counter(gpus_of(make_plan(facts([model(workers=fixed(7))], busy)))) == {"GPU-0": 1, "GPU-1": 6}


def test_a_full_gpu_is_passed_over():
    small = [gpu(0, cap=2), gpu(1)]
    assert Counter(gpus_of(make_plan(facts([model(workers=fixed(7))], small)))) == {"GPU-0": 2, "GPU-1": 5}


def test_fixed_counts_fit_where_spreading_alone_would_not():
    """Two small workers first, spread, would leave no GPU for the large one."""
    small, large = model("small", fixed(2), gib=30), model("large", fixed(1), gib=70)
    plan = make_plan(facts([small, large], TWO))
    assert Counter((slot.model, slot.gpu) for slot in plan.slots) in (
        {("small", "GPU-0"): 2, ("large", "GPU-1"): 1},
        {("small", "GPU-1"): 2, ("large", "GPU-0"): 1},
    )


def test_device_ids_are_followed_round_robin_with_repeats():
    plan = make_plan(facts([model(workers=fixed(5), device_ids=(1, 1, 0))], TWO))
    assert gpus_of(plan) == ["GPU-1", "GPU-1", "GPU-0", "GPU-1", "GPU-1"]


@pytest.mark.parametrize("position", [2, -1])
def test_a_device_id_beyond_the_gpus_is_refused(position):
    with pytest.raises(PlanError, match=rf"deviceIds \[{position}\].*2 GPU"):
        make_plan(facts([model(workers=fixed(1), device_ids=(position,))], TWO))


def test_a_cpu_model_takes_no_gpu():
    models = [model("c", fixed(5), on_gpu=False), model("g", fixed(1))]
    plan = make_plan(facts(models, [gpu(cap=1)]))
    assert Counter(gpus_of(plan)) == {None: 5, "GPU-0": 1}


def test_clients_of_others_count():
    busy = [gpu(attached=8)]
    assert len(make_plan(facts([model(workers=fixed(40))], busy)).slots) == 40
    with pytest.raises(PlanError, match="of which 8 are taken by others"):
        make_plan(facts([model(workers=fixed(41))], busy))


def test_a_model_may_be_loaded_without_workers():
    plan = make_plan(facts([model("idle", fixed(0)), model("busy", fixed(1))]))
    assert [(one.name, one.workers) for one in plan.models] == [("idle", 0), ("busy", 1)]
    assert [slot.model for slot in plan.slots] == ["busy"]


def test_without_gpus_all_workers_are_on_the_cpu():
    plan = make_plan(facts([model(workers=fixed(2))], []))
    assert (plan.mps, gpus_of(plan), plan.models[0].requests_per_second) == (False, [None, None], None)


def test_threads_share_the_cores_unless_the_user_decided():
    five, forty = [model(workers=fixed(5))], [model(workers=fixed(40))]
    assert {slot.threads for slot in make_plan(facts(five, [], HOST)).slots} == {3}
    assert {slot.threads for slot in make_plan(facts(forty, [], HOST)).slots} == {1}
    assert {slot.threads for slot in make_plan(facts(five, [], replace(HOST, set_threads=False))).slots} == {0}


def test_affinity():
    near = [gpu(0, cores=tuple(range(8))), gpu(1, cores=tuple(range(8, 16)))]
    models = [model(workers=fixed(4))]
    numa = make_plan(facts(models, near, HOST))
    assert {slot.gpu: slot.cores for slot in numa.slots} == {card.uuid: card.cores for card in near}
    own = make_plan(facts(models, near, replace(HOST, affinity="cores")))
    assert [slot.cores for slot in own.slots] == [(0, 1, 2, 3), (8, 9, 10, 11), (4, 5, 6, 7), (12, 13, 14, 15)]
    none = make_plan(facts(models, near, replace(HOST, affinity="none")))
    assert {slot.cores for slot in none.slots} == {()}
    whole = make_plan(facts(models, [gpu(0, cores=HOST.cores)], HOST))
    assert {slot.cores for slot in whole.slots} == {()}, "all cores are near: nothing to pin"


@pytest.mark.parametrize("near", [(), tuple(range(8))], ids=["unknown", "shared"])
def test_workers_of_gpus_that_share_their_cores_have_cores_of_their_own(near):
    host = HostFacts(cores=tuple(range(16)), affinity="cores")
    slots = make_plan(facts([model(workers=fixed(4))], [gpu(0, cores=near), gpu(1, cores=near)], host)).slots
    pinned = [core for slot in slots for core in slot.cores]
    assert sorted(pinned) == list(near or host.cores)


demands = st.lists(
    st.builds(
        ModelFacts,
        st.sampled_from(["a", "b", "c"]),
        st.just("1.0"),
        st.integers(0, 30).map(fixed),
        on_gpu=st.booleans(),
        device_ids=st.lists(st.integers(0, 1), max_size=3).map(tuple),
    ),
    max_size=4,
)


@given(demands, st.lists(st.integers(1, 60), min_size=2, max_size=2), st.integers(0, 20), st.data())
def test_every_worker_has_a_slot_and_no_cap_is_passed(models, caps, strangers, data):
    cards = [gpu(0, cap=caps[0], cores=(0, 1)), gpu(1, cap=caps[1], attached=strangers)]
    host = replace(HOST, affinity=data.draw(st.sampled_from(["none", "numa", "cores"])))
    asked = facts(models, cards, host)
    try:
        plan = make_plan(asked)
    except PlanError as error:
        assert error.remedy
        assert error.exit_code == 4
        return
    wanted = Counter()
    for one in models:
        wanted[one.name] += one.workers.least
    assert Counter(slot.model for slot in plan.slots) == +wanted
    on = Counter(gpus_of(plan))
    assert on["GPU-0"] <= caps[0]
    assert on["GPU-1"] + strangers <= caps[1] or on["GPU-1"] == 0
    assert [slot.number for slot in plan.slots] == list(range(len(plan.slots)))
    assert all(set(slot.cores) <= set(host.cores) for slot in plan.slots)
    assert make_plan(asked) == plan, "the same facts give the same plan"
    assert Plan.from_json(plan.as_json()) == plan


def test_a_plan_of_another_version_is_refused():
    with pytest.raises(ValueError, match="version 99"):
        Plan.from_json({"version": 99, "gpus": [], "slots": []})
