import re
import time
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


def test_memory_that_is_not_known_does_not_bind():
    plan = make_plan(facts([model(gib=5, profile=RISING)], [gpu(0, memory=0), gpu(1, memory=12)]))
    assert counts(plan) == {"m": 18}
    assert plan.gpus[0].memory_budget == 0
    both = [model("a", fixed(40), gib=7.3), model("b", fixed(40), gib=7)]
    with pytest.raises(PlanError, match=r"room for GPU 0 unknown memory and 48 clients, GPU 1 49.9 GiB"):
        make_plan(facts(both, [gpu(0, memory=0), gpu(1, memory=50)]))


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


def test_what_must_run_is_more_than_the_cores_carry():
    host = HostFacts(cores=tuple(range(4)))
    plan = make_plan(facts([model(workers=WorkerWish(8, 16, "a range"), profile=RISING)], host=host))
    assert counts(plan) == {"m": 8}
    assert why(plan) == (
        "cores: 4 cores with 1 for each worker carry no more than the least number, 8 workers (a range)"
    )


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
    shown = [float(part) for part in re.findall(r"-?[\d.]+(?= %)", why(plan, "light"))]
    assert shown == pytest.approx([*_gain_and_worth(plan), 3.0], abs=0.06)
    even = make_plan(facts([replace(heavy, weight=1), light]))
    assert counts(even)["heavy"] == counts(even)["light"]
    assert even.models[0].requests_per_second == pytest.approx(200), "each has half of the GPU"


def _gain_and_worth(plan):
    """Of one more worker of "light" beside "heavy" of weight 4, in percent, by hand."""
    rates = dict(zip(range(5), (0, 100, 200, 300, 400), strict=True))
    heavy, light = counts(plan)["heavy"], counts(plan)["light"]

    def made(some):
        share = max(1, (rates[heavy] + rates[some]) / 400)
        return rates[heavy] / share, rates[some] / share

    (heavy_now, now), (heavy_after, after) = made(light), made(light + 1)
    return 100 * (after / now - 1), 100 * (after / now * (heavy_after / heavy_now) ** 4 - 1)


def test_what_others_would_lose_is_not_exaggerated():
    """The next worker of a would cost b 0.2 % and add 3.7 %: not "as much or more", but too much."""
    flat = profile(on={1: 100, 2: 110, 4: 120, 8: 125})
    plan = make_plan(facts([model("a", profile=RISING, weight=4), model("b", profile=flat)]))
    assert counts(plan) == {"a": 13, "b": 1}
    assert why(plan, "a") == (
        "share: the 14th worker would add 3.7 % to the throughput of a, but with what the other models of GPU 0 would "
        "lose it is worth 2.7 %, less than 3.0 %"
    )


def test_the_figures_of_small_workers_can_be_multiplied():
    plan = make_plan(facts([model(gib=150 / 1024, profile=RISING)], [gpu(memory=1.5)]))
    assert why(plan) == "memory: 9 workers x 150 MiB reach the budget of 1.43 GiB of GPU 0; one more would pass it"


def test_a_gpu_that_others_fill_is_the_reason():
    large = model("large", fixed(1), gib=79)
    plan = make_plan(facts([large, model(gib=5, profile=RISING)], [gpu(0), gpu(1, memory=6)]))
    said = "memory: other models hold 79.0 GiB of the budget of 79.9 GiB of GPU 0; one more worker of 5.0 GiB"
    assert why(plan) == f"{said} would pass it"


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


@pytest.mark.parametrize("each", [0.0, 0.5])
def test_one_worker_for_each_core_at_most(each):
    plan = make_plan(facts([model(on_gpu=False)], [], HostFacts(cores=(0, 1, 2)), cores_per_worker=each))
    assert (counts(plan), why(plan)) == ({"m": 3}, "cores: one worker for each of 3 cores")


@pytest.mark.parametrize(
    ("measured", "wish", "workers", "said"),
    [
        ({}, AUTO, 1, "measured: the profile goes no further than 1 worker on the CPU"),
        ({1: 10, 2: 20}, AUTO, 2, "measured: the profile goes no further than 2 workers on the CPU"),
        ({1: 10, 2: 10.1, 4: 10.2}, WorkerWish(3, 9, "a range"), 3, "minimum: at least 3 (a range)"),
    ],
)
def test_the_profile_of_a_cpu_says_no_more_than_was_measured(measured, wish, workers, said):
    plan = make_plan(facts([model(workers=wish, profile=profile(off=measured, gpu="CPU"))], []))
    assert (counts(plan), why(plan)) == ({"m": workers}, said)


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


@pytest.mark.parametrize("card", [gpu(attached=48), gpu(memory=4)])
def test_where_nothing_fits_fewer_workers_are_no_remedy(card):
    with pytest.raises(PlanError) as refused:
        make_plan(facts([model(workers=fixed(2), gib=5)], [card]))
    assert refused.value.remedy.startswith("Not even one worker fits: free the GPUs, or make more GPUs visible")
    assert "fewer" not in refused.value.remedy
    assert ("--mps off" in refused.value.remedy) == (card.attached == 48)


def test_the_nearest_leaves_a_small_wish_alone_beside_an_absurd_one():
    """All shrink by the same part, but from what fits of each at most: 47 of 1,000."""
    with pytest.raises(PlanError) as refused:
        make_plan(facts([model("a", fixed(1000)), model("b", fixed(10))], reserve=1))
    assert nearest(refused.value) == {"a": 39, "b": 8}


def test_the_nearest_to_many_workers_is_full():
    asked = facts([model("a", fixed(300), gib=30), model("b", fixed(3000), gib=1.3)], [gpu(i) for i in range(8)])
    with pytest.raises(PlanError) as refused:
        make_plan(asked)
    near = nearest(refused.value)
    assert counts(make_plan(again(asked, refused.value))) == near
    for name in near:
        more = {**near, name: near[name] + 1}
        with pytest.raises(PlanError):
            make_plan(replace(asked, models=tuple(replace(one, workers=fixed(more[one.name])) for one in asked.models)))


def test_what_cannot_be_divided_is_refused():
    asked = facts([model(workers=fixed(4), gib=30)], [gpu(0, memory=50), gpu(1, memory=50), gpu(2, memory=50)])
    with pytest.raises(PlanError, match=r"cannot be divided among the GPUs, which have room for GPU 0 49.9 GiB"):
        make_plan(asked)


def test_a_search_that_was_not_exact_claims_no_more_than_it_found():
    with pytest.raises(PlanError, match=r"No placement was found .* room for GPU 0 49.9 GiB and 48 clients, GPU 1"):
        make_plan(facts([model(workers=fixed(7), gib=30)], [gpu(index, memory=50) for index in range(6)]))


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


def test_a_memory_limit_below_what_a_worker_needs_is_reported():
    tight = model(gib=5, memory_limit=4 * GIB)
    assert make_plan(facts([tight])).warnings == (
        "The memory limit of m is 4.0 GiB, and a worker needs 5.0 GiB (profile): it may not load, or run out of memory "
        "in its batches. Raise the limit.",
    )
    assert not make_plan(facts([replace(tight, memory_limit=5 * GIB)])).warnings
    assert not make_plan(facts([tight], mps="off")).warnings, "it has no effect there"


def test_a_profile_from_another_gpu_is_reported():
    plan = make_plan(facts([model(profile=profile(on={1: 5}, gpu="A100"))]))
    assert "The profile of m was measured on A100, and it is planned on H200" in plan.warnings[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": (model(workers=WorkerWish(5, 2, "ts-mps.toml")),)}, "at least 5 and at most 2 workers"),
        ({"models": (model(workers=fixed(-1)),)}, "-1 workers for model m"),
        ({"models": (model(workers=fixed(10**7)),)}, "10000000 workers for model m"),
        ({"models": (model(weight=0),)}, "A weight of 0 for model m"),
        ({"models": (model(weight=1e308),)}, "A weight of 1e+308 for model m"),
        ({"models": (model(weight=1e-11),)}, "A weight of 1e-11 for model m"),
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


def test_sequences_of_gpus_are_not_searched_for_long():
    """Each number of workers of such a model needs tables of its own, and 3 models can have 32 each here."""
    asked = facts([model(name, device_ids=(0, 1), profile=RISING) for name in "abc"], [gpu(0), gpu(1)])
    begun = time.process_time()
    plan = make_plan(asked)
    assert time.process_time() - begun < 1.0
    made = [one.requests_per_second for one in plan.models]
    assert sum(made) == pytest.approx(3200), "both GPUs are full"
    assert max(made) / min(made) <= 1.2, "and shared evenly, as far as whole workers go"


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
