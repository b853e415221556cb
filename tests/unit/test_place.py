from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.errors import PlanError
from ts_mps.plan.model import Plan, PlannedGpu
from ts_mps.plan.place import HostFacts, ModelDemand, place

HOST = HostFacts(cores=tuple(range(16)), gpu_cores={})


def gpus(*caps):
    return tuple(PlannedGpu(i, f"GPU-{i}", "H200", cap, f"/p/{i}") for i, cap in enumerate(caps))


def counts(plan):
    return Counter(slot.gpu for slot in plan.slots)


def test_workers_spread_from_gpu_0():
    plan = place(gpus(48, 48), [ModelDemand("m", "1.0", 3)], HOST)
    assert [slot.gpu for slot in plan.slots] == ["GPU-0", "GPU-1", "GPU-0"]


def test_device_ids_are_followed_round_robin_with_repeats():
    plan = place(gpus(48, 48), [ModelDemand("m", "1.0", 5, device_ids=(1, 1, 0))], HOST)
    assert [slot.gpu for slot in plan.slots] == ["GPU-1", "GPU-1", "GPU-0", "GPU-1", "GPU-1"]


def test_a_device_id_beyond_the_gpus_is_refused():
    with pytest.raises(PlanError, match=r"deviceIds \[2\].*2 GPU"):
        place(gpus(48, 48), [ModelDemand("m", "1.0", 1, device_ids=(2,))], HOST)


def test_a_cpu_model_takes_no_gpu():
    plan = place(gpus(1), [ModelDemand("c", "1.0", 5, on_gpu=False), ModelDemand("g", "1.0", 1)], HOST)
    assert counts(plan) == {None: 5, "GPU-0": 1}


def test_past_the_cap_is_refused_with_what_fits():
    with pytest.raises(PlanError, match=r"49 workers.*takes 48 clients.*m: 49") as refused:
        place(gpus(48), [ModelDemand("m", "1.0", 49)], HOST)
    assert "at most 48 workers" in refused.value.remedy
    assert refused.value.exit_code == 4


def test_clients_of_others_count():
    place(gpus(48), [ModelDemand("m", "1.0", 40)], HOST, {"GPU-0": 8})
    with pytest.raises(PlanError, match="of which 8 are taken by others"):
        place(gpus(48), [ModelDemand("m", "1.0", 41)], HOST, {"GPU-0": 8})


def test_threads_share_the_cores_unless_the_user_decided():
    models = [ModelDemand("m", "1.0", 5)]
    assert {slot.threads for slot in place((), models, HOST).slots} == {3}
    assert {slot.threads for slot in place((), [ModelDemand("m", "1.0", 40)], HOST).slots} == {1}
    decided = HostFacts(cores=HOST.cores, gpu_cores={}, set_threads=False)
    assert {slot.threads for slot in place((), models, decided).slots} == {0}


def test_affinity():
    near = {"GPU-0": tuple(range(8)), "GPU-1": tuple(range(8, 16))}
    models = [ModelDemand("m", "1.0", 4)]
    numa = place(gpus(48, 48), models, HostFacts(HOST.cores, near))
    assert {slot.gpu: slot.cores for slot in numa.slots} == near
    own = place(gpus(48, 48), models, HostFacts(HOST.cores, near, affinity="cores"))
    assert [slot.cores for slot in own.slots] == [(0, 1, 2, 3), (8, 9, 10, 11), (4, 5, 6, 7), (12, 13, 14, 15)]
    none = place(gpus(48, 48), models, HostFacts(HOST.cores, near, affinity="none"))
    assert {slot.cores for slot in none.slots} == {()}
    whole = place(gpus(48), models, HostFacts(HOST.cores, {"GPU-0": HOST.cores}))
    assert {slot.cores for slot in whole.slots} == {()}, "all cores are near: nothing to pin"


demands = st.lists(
    st.builds(
        ModelDemand,
        st.sampled_from(["a", "b", "c"]),
        st.just("1.0"),
        st.integers(0, 30),
        on_gpu=st.booleans(),
        device_ids=st.lists(st.integers(0, 1), max_size=3).map(tuple),
    ),
    max_size=4,
)


@given(demands, st.lists(st.integers(1, 60), min_size=2, max_size=2), st.integers(0, 20), st.data())
def test_every_worker_has_a_slot_and_no_cap_is_passed(models, caps, strangers, data):
    cards = gpus(*caps)
    affinity = data.draw(st.sampled_from(["none", "numa", "cores"]))
    host = HostFacts(HOST.cores, {"GPU-0": (0, 1)}, affinity=affinity)
    try:
        plan = place(cards, models, host, {"GPU-1": strangers})
    except PlanError as error:
        assert error.remedy
        return
    wanted = Counter({model.name: 0 for model in models})
    for model in models:
        wanted[model.name] += model.workers
    assert Counter(slot.model for slot in plan.slots) == +wanted
    assert counts(plan)["GPU-0"] <= caps[0]
    assert counts(plan)["GPU-1"] + strangers <= caps[1] or counts(plan)["GPU-1"] == 0
    assert [slot.number for slot in plan.slots] == list(range(len(plan.slots)))
    assert all(set(slot.cores) <= set(host.cores) for slot in plan.slots)
    assert place(cards, models, host, {"GPU-1": strangers}) == plan, "the same facts give the same plan"
    assert Plan.from_json(plan.as_json()) == plan


def test_a_plan_of_another_version_is_refused():
    with pytest.raises(ValueError, match="version 99"):
        Plan.from_json({"version": 99, "gpus": [], "slots": []})
