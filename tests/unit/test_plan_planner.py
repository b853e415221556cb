import re
from dataclasses import replace

import pytest
from planning import AUTO, GIB, HOST, facts, fixed, gpu, memory, model, profile

from ts_mps.errors import PlanError
from ts_mps.plan.facts import SERVER_BYTES, HostFacts, WorkerWish
from ts_mps.plan.planner import make_plan

RISING = profile(on={1: 100, 2: 200, 4: 400, 8: 800, 16: 1600})
SATURATED = profile(on={1: 100, 2: 190, 3: 192, 8: 195})


def counts(plan):
    return {one.name: one.workers for one in plan.models}


def why(plan, name="m"):
    return next(one.why for one in plan.models if one.name == name)


# Reasons: each is true, and giving way to what it names gives more workers.


def test_memory_binds():
    plan = make_plan(facts([model(gib=5, profile=RISING)], [gpu(memory=24)]))
    assert counts(plan) == {"m": 4}
    assert why(plan) == "memory: 4 workers x 5.0 GiB reach the budget of 23.9 GiB of GPU 0; one more would pass it"
    assert counts(make_plan(facts([model(gib=5, profile=RISING)], [gpu(memory=26)]))) == {"m": 5}


def test_the_margin_and_what_others_hold_and_the_server_are_not_in_the_budget():
    plan = make_plan(facts([model(gib=5, profile=RISING)], [gpu(memory=40, memory_taken=8 * GIB)], memory_margin=0.1))
    assert plan.gpus[0].memory_budget == 28 * GIB - SERVER_BYTES
    assert plan.gpus[0].memory_planned == 25 * GIB
    off = make_plan(facts([model(workers=fixed(1))], [gpu(memory=40)], mps="off"))
    assert off.gpus[0].memory_budget == 40 * GIB, "no server without MPS"


def test_the_cap_binds():
    plan = make_plan(facts([model(profile=RISING)], [gpu(cap=9, attached=2)], reserve=1))
    assert counts(plan) == {"m": 6}
    assert "cap: GPU 0 has 6 workers" in why(plan)
    assert "9 clients of which 2 are taken by others and 1 is kept free" in why(plan)
    assert (plan.gpus[0].clients, plan.gpus[0].attached, plan.gpus[0].reserve) == (6, 2, 1)


def test_cores_bind():
    host = HostFacts(cores=tuple(range(9)))
    plan = make_plan(facts([model(profile=RISING), model("other", fixed(1))], host=host, cores_per_worker=1.5))
    assert counts(plan) == {"m": 5, "other": 1}
    assert why(plan).startswith("cores: 9 cores with 1.5 for each worker leave 5 workers")


def test_the_maximum_binds():
    plan = make_plan(facts([model(workers=WorkerWish(1, 3, "maxWorkers"), profile=RISING)]))
    assert why(plan) == "maximum: 3 (maxWorkers)"


def test_the_minimum_binds():
    plan = make_plan(facts([model(workers=WorkerWish(5, 9, "minWorkers"), profile=SATURATED)]))
    assert counts(plan) == {"m": 5}
    assert why(plan) == "minimum: at least 5 (minWorkers)"


def test_the_gain_ends_it():
    plan = make_plan(facts([model(profile=SATURATED)]))
    assert counts(plan) == {"m": 2}
    assert why(plan) == "gain: the 3rd worker would add 1.1 %, less than 3.0 %"
    assert counts(make_plan(facts([model(profile=SATURATED)], least_gain=0.01))) == {"m": 3}


def test_what_was_not_measured_is_not_chosen():
    plan = make_plan(facts([model(profile=RISING)]))
    assert counts(plan) == {"m": 16}
    assert why(plan) == "measured: the profile goes no further than 16 workers on a GPU"


def test_without_a_profile_two_workers_for_each_gpu():
    plan = make_plan(facts([model()], [gpu(0), gpu(1)]))
    assert counts(plan) == {"m": 4}
    assert why(plan).startswith("no profile: at most two workers for each GPU")
    assert counts(make_plan(facts([model()], [gpu(0), gpu(1)], mps="off"))) == {"m": 2}


def test_models_that_fill_a_gpu_share_it_by_weight():
    full = profile(on={1: 100, 2: 200, 4: 400})
    heavy, light = model("heavy", profile=full, weight=4), model("light", profile=full)
    plan = make_plan(facts([heavy, light]))
    assert counts(plan)["heavy"] > counts(plan)["light"]
    assert why(plan, "light").startswith("share: ")
    even = make_plan(facts([replace(heavy, weight=1), light]))
    assert counts(even)["heavy"] == counts(even)["light"]
    assert even.models[0].requests_per_second == pytest.approx(200), "each has half of the GPU"


def test_what_was_asked_for_is_given():
    plan = make_plan(facts([model(workers=fixed(7), profile=SATURATED)]))
    assert (counts(plan), why(plan)) == ({"m": 7}, "asked for: 7 (--workers)")


def test_a_model_stays_on_the_gpus_that_it_may_use():
    plan = make_plan(facts([model(profile=RISING, gpus=("GPU-1",)), model("n", profile=RISING)], [gpu(0), gpu(1)]))
    assert {slot.gpu for slot in plan.slots if slot.model == "m"} == {"GPU-1"}
    assert next(slot.why for slot in plan.slots if slot.model == "m") == "it may use GPU 1 only"


def test_percentages_bound_the_predicted_throughput():
    slow = replace(RISING, runs=profile(limited={25: 79.6, 50: 39.6}).runs)
    plan = make_plan(facts([model(workers=fixed(4), profile=slow, thread_percentage=25)]))
    assert plan.models[0].requests_per_second == pytest.approx(4 * 100)
    slower = replace(RISING, runs=profile(limited={25: 159.6}).runs)
    plan = make_plan(facts([model(workers=fixed(4), profile=slower, thread_percentage=25)]))
    assert plan.models[0].requests_per_second == pytest.approx(4 * 50)


# MPS on, off, auto.


def test_mps_is_left_off_where_one_worker_fills_the_gpu():
    plan = make_plan(facts([model("bert", profile=profile(on={1: 1011, 4: 1020}, off={1: 1203, 4: 1190}))]))
    assert (plan.mps, counts(plan), plan.gpus[0].cap, plan.gpus[0].clients) == (False, {"bert": 1}, None, 0)
    assert plan.mps_why == "1 worker of bert makes 1,203/s without MPS, and 1,011/s with it"


def test_mps_is_on_where_it_wins():
    plan = make_plan(facts([model("bert", profile=profile(on={1: 1011, 4: 4340}, off={1: 1246, 4: 3905}))]))
    assert plan.mps
    assert plan.mps_why == "4 workers of bert make 3,905/s without MPS, and 4,340/s with it"


def test_mps_stays_on_where_nothing_was_measured_without():
    plan = make_plan(facts([model(profile=profile(on={1: 100}))]))
    assert plan.mps
    assert "m has no measurement that says otherwise" in plan.mps_why


@pytest.mark.parametrize("mps", ["on", "off"])
def test_what_is_asked_of_mps_is_obeyed(mps):
    loses = profile(on={1: 100}, off={1: 200})
    wins = profile(on={1: 200}, off={1: 100})
    for measured in (loses, wins):
        plan = make_plan(replace(facts([model(profile=measured)], mps=mps), mps_why="--mps says so"))
        assert (plan.mps, plan.mps_why) == (mps == "on", "--mps says so")


def test_a_plan_without_gpu_models_has_no_mps():
    plan = make_plan(facts([model(workers=fixed(1), on_gpu=False)], mps="on"))
    assert (plan.mps, plan.gpus[0].cap, plan.gpus[0].pipe) == (False, None, None)


def test_what_fits_only_without_mps_goes_without():
    both = profile(on={1: 100, 4: 400}, off={1: 100, 4: 110})
    plan = make_plan(facts([model(workers=fixed(4), profile=both)], [gpu(cap=3)]))
    assert not plan.mps
    assert "takes 3 clients" in plan.mps_why


# Models on the CPU.


def test_models_on_the_cpu_share_the_cores():
    models = [model("a", on_gpu=False, weight=2), model("b", on_gpu=False), model("c", fixed(1), on_gpu=False)]
    plan = make_plan(facts(models, [], HostFacts(cores=tuple(range(10))), cores_per_worker=1))
    assert counts(plan) == {"a": 6, "b": 3, "c": 1}
    assert why(plan, "a").startswith("cores: its part of 10 cores")


def test_a_profile_from_a_cpu_ends_the_workers_on_the_cpu():
    measured = profile(off={1: 10, 2: 20, 4: 20.1}, gpu="CPU")
    plan = make_plan(facts([model(profile=measured)], []))
    assert counts(plan) == {"m": 2}
    assert why(plan) == "gain: more than 2 workers would not pay for themselves on the CPU"


# Refusals and warnings.


def nearest(error):
    """The wishes that a refusal's remedy names."""
    listed = re.search(r"Nearest that fits: (.*?)\. ", error.remedy).group(1)
    return {part.rsplit(" ", 1)[0]: int(part.rsplit(" ", 1)[1]) for part in listed.split(", ")}


def again(asked, error):
    models = tuple(replace(one, workers=fixed(nearest(error)[one.name])) for one in asked.models)
    return replace(asked, models=models)


def test_past_the_cap_is_refused_with_what_fits():
    asked = facts([model(workers=fixed(49))], reserve=1)
    with pytest.raises(PlanError, match=r"49 workers.*takes 48 clients of which 1 is kept free.*m: 49") as refused:
        make_plan(asked)
    assert nearest(refused.value) == {"m": 47}
    assert "--mps off" in refused.value.remedy
    assert counts(make_plan(again(asked, refused.value))) == {"m": 47}


def test_past_the_memory_is_refused_with_what_fits():
    asked = facts([model("bert", fixed(7), gib=2), model("ranker", fixed(3), gib=3)], [gpu(memory=12)])
    with pytest.raises(PlanError, match=r"need 23.0 GiB, and its budget is 11.9 GiB") as refused:
        make_plan(asked)
    assert "--mps off" not in refused.value.remedy, "that would not help"
    assert counts(make_plan(again(asked, refused.value))) == {"bert": 4, "ranker": 1}


def test_a_worker_too_large_for_any_gpu_is_named():
    asked = facts([model("huge", gib=90), model("small", gib=1)], [gpu(0), gpu(1, memory=40)])
    with pytest.raises(PlanError, match=r"One worker of model huge needs 90.0 GiB.*largest.*79.9 GiB") as refused:
        make_plan(asked)
    assert nearest(refused.value) == {"huge": 0, "small": 1}


def test_what_cannot_be_divided_is_refused():
    asked = facts([model(workers=fixed(4), gib=30)], [gpu(0, memory=50), gpu(1, memory=50), gpu(2, memory=50)])
    with pytest.raises(PlanError, match=r"cannot be divided among the GPUs, which have room for GPU 0 49.9 GiB"):
        make_plan(asked)


def test_estimated_memory_never_refuses_a_number_that_was_asked_for():
    asked = facts([model(workers=fixed(3), gib=40, source="estimate")])
    plan = make_plan(asked)
    assert counts(plan) == {"m": 3}
    assert any("estimated to hold 120.0 GiB" in warning for warning in plan.warnings)
    auto = make_plan(facts([model(gib=30, source="estimate")]))
    assert counts(auto) == {"m": 2}
    assert not auto.warnings
    assert counts(make_plan(facts([model(gib=50, source="estimate")]))) == {"m": 1}, "but it bounds what is chosen"
    with pytest.raises(PlanError, match=r"need 160.0 GiB"):
        make_plan(facts([model(workers=fixed(3), gib=40), model("n", gib=40, workers=fixed(1))]))


def test_too_few_cores_are_reported_and_the_number_is_honoured():
    plan = make_plan(facts([model(workers=fixed(8))], host=HostFacts(cores=(0, 1, 2, 3))))
    assert counts(plan) == {"m": 8}
    assert plan.warnings[0].startswith("8 workers on 4 cores: each needs 1")


def test_a_profile_from_another_gpu_is_reported():
    plan = make_plan(facts([model(profile=profile(on={1: 5}, gpu="A100"))]))
    assert "The profile of m was measured on A100, and it is planned on H200" in plan.warnings[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": (model(workers=WorkerWish(5, 2, "ts-mps.toml")),)}, "at least 5 and at most 2 workers"),
        ({"models": (model(workers=fixed(-1)),)}, "-1 workers for model m"),
        ({"models": (model(weight=0),)}, "A weight of 0 for model m"),
        ({"models": (model(weight=float("nan")),)}, "A weight of nan for model m"),
        ({"models": (model(thread_percentage=101),)}, "thread percentage of 101 for model m"),
        ({"models": (model(batch_size=0),)}, "batch size of 0 for model m"),
        ({"models": (model(gpus=("GPU-7",)),)}, "may use GPU-7 only"),
        ({"models": (replace(model(), memory=memory(-1)),)}, "memory figure below 0 for model m"),
        ({"models": (model(memory_limit=0),)}, "memory limit of 0 bytes for model m"),
        ({"host": HostFacts(cores=())}, "no cores"),
        ({"mps": "maybe"}, '"maybe"'),
    ],
)
def test_facts_that_cannot_be_meant_are_refused(change, said):
    with pytest.raises(PlanError, match=re.escape(said)) as refused:
        make_plan(replace(facts([model()]), **change))
    assert refused.value.remedy


@pytest.mark.parametrize(
    "rule",
    [
        {"reserve": -1},
        {"memory_margin": 1},
        {"memory_margin": -0.1},
        {"cores_per_worker": -1},
        {"cores_per_worker": float("inf")},
        {"least_gain": -0.1},
        {"percentages": "odd"},
        {"percentages": "fixed"},
        {"percentages": "fixed", "percentage": 0},
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rule):
    with pytest.raises(PlanError, match="cannot be planned with"):
        make_plan(facts([model()], **rule))


def test_device_ids_outside_the_allowed_gpus_are_refused():
    with pytest.raises(PlanError, match=r"deviceIds \[0\], and ts-mps.toml keeps it off GPU 0"):
        make_plan(facts([model(device_ids=(0,), gpus=("GPU-1",))], [gpu(0), gpu(1)]))


def test_an_auto_model_with_device_ids_keeps_their_order():
    plan = make_plan(facts([model(workers=AUTO, device_ids=(1, 0), profile=RISING)], [gpu(0), gpu(1, cap=3)], HOST))
    assert [slot.gpu for slot in plan.slots] == ["GPU-1", "GPU-0"] * 3
    assert "cap: GPU 1 has 3 workers" in plan.models[0].why


def test_the_machine_is_in_the_plan():
    asked = replace(facts([model()]), fingerprints={"driver": "580"})
    assert make_plan(asked).machine == {"driver": "580"}


def test_repeated_device_ids_do_not_pass_what_was_measured_on_one_gpu():
    plan = make_plan(facts([model(device_ids=(0, 0), profile=profile(on={1: 100, 2: 200}))], mps="on"))
    assert counts(plan) == {"m": 2}


def test_workers_that_were_asked_for_past_an_estimate_leave_no_room_for_others():
    asked_for = model("large", fixed(3), gib=40, source="estimate", gpus=("GPU-0",))
    plan = make_plan(facts([asked_for, model(profile=RISING)], [gpu(0), gpu(1, cap=2)]))
    assert {slot.gpu for slot in plan.slots if slot.model == "m"} == {"GPU-1"}
    only_there = make_plan(facts([asked_for, model(profile=RISING, workers=fixed(1))], [gpu(0)]))
    assert counts(only_there) == {"large": 3, "m": 1}


def test_a_worker_that_would_add_nothing_is_not_added():
    plan = make_plan(facts([model(profile=profile(on={1: 100, 2: 100}))], least_gain=0.0))
    assert (counts(plan), why(plan)) == ({"m": 1}, "gain: the 2nd worker would add nothing")
