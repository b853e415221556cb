"""What holds for every plan, against an exhaustive search that shares no code with the planner."""

import itertools
import math
import random
import re
import time
import tracemalloc
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from planning import GIB, facts, fixed, gpu, model, profile

from ts_mps.errors import PlanError
from ts_mps.plan import exact, greedy
from ts_mps.plan.facts import SERVER_BYTES, Facts, HostFacts, WorkerWish
from ts_mps.plan.planner import make_plan
from ts_mps.plan.problem import problem_of

MOST = 3  # workers that the small profiles were measured with

rates = st.lists(st.integers(50, 1000), min_size=MOST, max_size=MOST)
wishes = st.one_of(
    st.just(WorkerWish(1, None, "auto")),
    st.integers(0, 4).map(fixed),
    st.tuples(st.integers(1, 3), st.integers(0, 2)).map(lambda two: WorkerWish(two[0], two[0] + two[1], "a range")),
)


@st.composite
def models(draw, most, cards):
    turns = [(), (), (), (0, 0), (cards - 1, 0), (0, cards - 1, cards - 1)]
    found = []
    for number in range(draw(st.integers(1, most))):
        on, off = (dict(enumerate(draw(rates), 1)) for _ in range(2))
        kind = draw(st.sampled_from(["both", "on", "limited", "none"]))
        # From far less to far more than what one worker would leave of the GPU.
        busy = draw(st.sampled_from([None, None, 0.1, 2.0, 20.0]))
        slow = {25: draw(st.integers(20, 200)), 50: draw(st.integers(10, 100))}
        measured = {
            "both": profile(on, off, gpu_ms=busy),
            "on": profile(on, gpu_ms=busy),
            "limited": profile(on, off, limited=slow, gpu_ms=busy),
            "none": None,
        }[kind]
        found.append(
            model(
                f"m{number}",
                draw(wishes),
                gib=draw(st.one_of(st.none(), st.integers(1, 12))),
                source=draw(st.sampled_from(["profile", "profile", "estimate"])),
                profile=measured,
                weight=draw(st.sampled_from([0.5, 1.0, 3.0])),
                gpus=draw(st.sampled_from([(), (), ("GPU-0",)])),
                device_ids=draw(st.sampled_from(turns)),
            )
        )
    return found


@st.composite
def instances(draw, most=3, memory=48, cap=8):
    cards = [
        gpu(index, memory=draw(st.integers(4, memory)), cap=draw(st.integers(1, cap)), attached=draw(st.integers(0, 1)))
        for index in range(draw(st.integers(1, 2)))
    ]
    policy = {
        "reserve": draw(st.integers(0, 1)),
        "least_gain": draw(st.sampled_from([0.0, 0.03, 0.2])),
        "percentages": draw(st.sampled_from(["none", "none", "even", "overlap"])),
    }
    cores = HostFacts(cores=tuple(range(draw(st.integers(1, 12)))))
    some = [one if not one.device_ids else replace(one, gpus=()) for one in draw(models(most, len(cards)))]
    return facts(some, cards, cores, mps=draw(st.sampled_from(["on", "off", "auto"])), **policy)


def attempt(asked):
    try:
        return make_plan(asked)
    except PlanError as error:
        return error


def placed(plan):
    return Counter((slot.gpu, slot.model) for slot in plan.slots)


# The exhaustive search: dictionaries and loops, from the formulas of the documentation.


def curve(one, mps):
    if one.profile is None:
        return [0, 1, 1.5] if mps else [0, 1]
    points = {run.workers: run.requests_per_second for run in one.profile.scaling if run.mps == mps}
    if not points:
        alone = one.profile.runs[0]
        return [0, 1000 * one.batch_size / (alone.milliseconds + one.profile.gap_milliseconds)]
    return [0, *(points[number] for number in sorted(points))]


def ways(one, cards, mps):
    """Every division of a model's workers among the GPUs: tuples of counts.

    A plan never chooses more on one GPU than were measured there, unless the least number asks for them.
    """
    free = [index for index, card in enumerate(cards) if not one.gpus or card.uuid in one.gpus]
    known, least = len(curve(one, mps)) - 1, one.workers.least
    high = math.inf if one.workers.most is None else one.workers.most
    if one.device_ids:
        for total in range(least, min(high, least + known * len(cards)) + 1):
            turns = Counter(one.device_ids[worker % len(one.device_ids)] for worker in range(total))
            if total == least or max(turns.values()) <= known:
                yield tuple(turns[index] for index in range(len(cards)))
        return
    span = range((least if one.workers.fixed else max(known, least)) + 1)
    for counts in itertools.product(*(span if index in free else (0,) for index in range(len(cards)))):
        if least <= sum(counts) <= high:
            yield counts


def room(asked, mps, counts):
    """Whether counts[model][gpu] fit."""
    for index, card in enumerate(asked.gpus):
        here = [row[index] for row in counts]
        if mps and sum(here) > max(0, card.cap - asked.policy.reserve - card.attached):
            return False
        held = firm = 0
        for one, number in zip(asked.models, here, strict=True):
            size = one.memory.total * number if one.memory else 0
            held += size
            firm += 0 if one.workers.fixed and one.memory and one.memory.source == "estimate" else size
        autos = any(number and not one.workers.fixed for one, number in zip(asked.models, here, strict=True))
        if (held if autos else firm) > card.memory_total - (SERVER_BYTES if mps else 0):
            return False
    pairs = list(zip(asked.models, counts, strict=True))
    autos = sum(sum(row) for one, row in pairs if not one.workers.fixed)
    taken = sum(one.workers.least for one in asked.models if one.workers.fixed)
    least = sum(one.workers.least for one in asked.models if not one.workers.fixed)
    return autos <= max(least, len(asked.host.cores) - taken)


def ceiling(one, policy, everybody):
    """What one worker answers at most beside so many."""
    share = {"none": 100, "even": 100 / everybody, "overlap": 200 / everybody}[policy]
    limited = {run.percentage: 8000 / (run.milliseconds + 0.4) for run in (one.profile.runs if one.profile else ())}
    limited.pop(None, None)
    if share >= 100 or not limited:
        return math.inf
    share = math.floor(share * 100) / 100
    lower = [rate for percentage, rate in limited.items() if percentage <= share]
    return max(lower) if lower else limited[25] * share / 25


def value(asked, mps, counts):
    total = 0.0
    made = [0.0] * len(asked.models)
    for index in range(len(asked.gpus)):
        alone, uses = [], []
        everybody = sum(row[index] for row in counts)
        for one, row in zip(asked.models, counts, strict=True):
            known, here = curve(one, mps), row[index]
            bound = here * ceiling(one, asked.policy.percentages, everybody) if mps and here else math.inf
            alone.append(min(bound, known[min(here, len(known) - 1)]))
            busy = one.profile.runs[0].gpu_milliseconds if one.profile else None
            time_of_gpu = math.inf if busy is None else busy / 1000 / one.batch_size
            uses.append(min(bound, max(known[: here + 1])) * min(1 / max(known), time_of_gpu))
        for number, rate in enumerate(alone):
            made[number] += rate / max(1.0, sum(uses))
    for one, rate, row in zip(asked.models, made, counts, strict=True):
        if one.workers.most != 0:
            total += one.weight * (math.log(rate) - math.log(1 + asked.policy.least_gain) * sum(row))
    return total


def exhaustive(asked, mps):
    """The best objective; None if nothing fits."""
    found = [
        value(asked, mps, counts)
        for counts in itertools.product(*(list(ways(one, asked.gpus, mps)) for one in asked.models))
        if room(asked, mps, counts)
    ]
    return max(found, default=None)


def weighed(asked):
    return any(not one.workers.fixed or one.profile for one in asked.models if one.workers.most != 0)


@settings(max_examples=150)
@given(instances())
def test_a_plan_is_the_best_there_is_and_a_refusal_is_true(asked):
    plan = attempt(asked)
    best = {mps: exhaustive(asked, mps) for mps in (True, False)}
    some = [one for one in asked.models if one.workers.most != 0]
    assume(some)
    if isinstance(plan, PlanError):
        assert best[asked.mps != "off"] is None
        assert plan.remedy
        return
    assert best[plan.mps] is not None
    if weighed(asked):
        assert math.isclose(plan.objective, best[plan.mps], rel_tol=1e-9, abs_tol=1e-6)
    if asked.mps == "auto" and weighed(asked):
        both = all(one.profile and any(not run.mps for run in one.profile.scaling) for one in some)
        if both and None not in best.values() and abs(best[True] - best[False]) > 1e-6:
            assert plan.mps == (best[True] > best[False])
        if not both:
            assert plan.mps


@settings(max_examples=150)
@given(instances())
def test_no_plan_passes_a_limit(asked):
    plan = attempt(asked)
    if isinstance(plan, PlanError):
        return
    on = placed(plan)
    for card, planned in zip(asked.gpus, plan.gpus, strict=True):
        here = {one.name: on[card.uuid, one.name] for one in asked.models}
        if plan.mps:
            assert sum(here.values()) == planned.clients <= max(0, card.cap - card.attached - asked.policy.reserve)
        sizes = {one.name: one.memory.total * here[one.name] if one.memory else 0 for one in asked.models}
        assert planned.memory_planned == sum(sizes.values())
        waived = all(one.workers.fixed for one in asked.models if here[one.name])
        firm = sum(
            sizes[one.name] for one in asked.models if not (waived and one.memory and one.memory.source == "estimate")
        )
        assert firm <= planned.memory_budget
    for one, got in zip(asked.models, plan.models, strict=True):
        assert one.workers.least <= got.workers <= (one.workers.most if one.workers.most is not None else math.inf)
        assert got.workers == sum(count for (_, name), count in on.items() if name == one.name)
        assert got.why
    assert make_plan(asked) == plan


@settings(max_examples=150)
@given(instances(), st.sampled_from(["memory", "cap", "cores", "reserve"]), st.integers(0, 1))
def test_more_room_is_never_worse(asked, what, which):
    plan = attempt(asked)
    if isinstance(plan, PlanError):
        return
    index = which % len(asked.gpus)
    card = asked.gpus[index]
    if what == "cores":
        more = replace(asked, host=HostFacts(cores=tuple(range(len(asked.host.cores) + 1))))
    elif what == "reserve":
        more = replace(asked, policy=replace(asked.policy, reserve=0))
    else:
        larger = {"memory_total": card.memory_total + 3 * GIB} if what == "memory" else {"cap": card.cap + 1}
        cards = list(asked.gpus)
        cards[index] = replace(card, **larger)
        more = replace(asked, gpus=tuple(cards))
    assert make_plan(more).objective >= plan.objective - 1e-9


@settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
@given(instances(memory=12, cap=3))
def test_the_nearest_plan_of_a_refusal_plans(asked):
    error = attempt(asked)
    assume(isinstance(error, PlanError) and "Nearest that fits" in error.remedy)
    listed = re.search(r"Nearest that fits: (.*?)\. Plan that", error.remedy).group(1)
    wanted = {part.split()[0]: int(part.split()[1]) for part in listed.split(", ")}
    lower = tuple(
        replace(one, workers=fixed(wanted[one.name])) if one.workers.most != 0 else one for one in asked.models
    )
    again = make_plan(replace(asked, models=lower))
    assert {one.name: one.workers for one in again.models if one.name in wanted} == wanted
    assert all(wanted[one.name] <= one.workers.least for one in asked.models if one.name in wanted)
    assert wanted != {one.name: one.workers.least for one in asked.models if one.name in wanted}


def only(asked, kind):
    """The same facts with every limit but one far away."""
    cards = [
        replace(
            card,
            cap=card.cap if kind == "cap" else 999,
            memory_total=card.memory_total if kind == "memory" else 9000 * GIB,
        )
        for card in asked.gpus
    ]
    return replace(asked, gpus=tuple(cards), host=asked.host if kind == "cores" else HostFacts(tuple(range(999))))


@settings(max_examples=200)
@given(instances())
def test_the_constraint_of_a_reason_binds(asked):
    """One more worker would be better where it is forbidden by what the reason names, and nowhere it is allowed."""
    plan = attempt(asked)
    if isinstance(plan, PlanError):
        return
    assert not weighed(asked) or plan.objective == pytest.approx(objective_of(plan, asked), abs=1e-6)
    on, now = placed(plan), objective_of(plan, asked)
    for number, (one, got) in enumerate(zip(asked.models, plan.models, strict=True)):
        kind = got.why.split(":")[0]
        if one.workers.fixed:
            assert kind == "asked for"
            continue
        assert got.workers == one.workers.most or kind != "maximum"
        after = []
        turn = one.device_ids[got.workers % len(one.device_ids)] if one.device_ids else None
        for index, card in enumerate(asked.gpus):
            if card.uuid in (one.gpus or [card.uuid]) and turn in (None, index):
                more = [[on[place.uuid, other.name] for place in asked.gpus] for other in asked.models]
                more[number][index] += 1
                after.append((value(asked, plan.mps, more), more))
        if kind in ("memory", "cap", "cores"):
            limit = only(asked, kind)
            assert any(worth > now and not room(limit, plan.mps, more) for worth, more in after)
        else:
            assert kind in ("maximum", "minimum", "gain", "share", "measured", "no profile")
            if kind not in ("maximum", "measured"):
                assert all(worth <= now + 1e-9 for worth, more in after)
        if kind == "measured":
            assert max(on[card.uuid, one.name] for card in asked.gpus) >= len(curve(one, plan.mps)) - 1
        if kind == "minimum":
            assert got.workers == one.workers.least


def objective_of(plan, asked):
    on = placed(plan)
    return value(asked, plan.mps, [[on[card.uuid, one.name] for card in asked.gpus] for one in asked.models])


def many(seed, count, cards, memory=80, cap=48):
    """Models with saturating curves, on GPUs of different sizes."""
    dice = random.Random(seed)
    some = []
    for number in range(count):
        rate, width = dice.uniform(10, 1000), dice.uniform(1, 5)
        on = {workers: rate * width * (1 - math.exp(-workers / width)) for workers in (1, 2, 4, 8, 16)}
        off = {workers: 1.1 * rate * (1 - math.exp(-workers)) for workers in (1, 2, 4, 8, 16)}
        some.append(
            model(f"m{number}", gib=dice.randint(1, 9), profile=profile(on, off), weight=dice.choice([1, 2, 5]))
        )
    gpus = [gpu(index, memory=memory * dice.choice([0.5, 1, 1]), cap=cap) for index in range(cards)]
    return facts(some, gpus, HostFacts(cores=tuple(range(2000))))


def test_200_models_on_64_gpus_plan_in_under_a_second():
    asked = many(1, 200, 64)
    taken = []
    for _ in range(3):  # on a core that others share even the time of this process alone varies
        begun = time.process_time()
        plan = make_plan(asked)
        taken.append(time.process_time() - begun)
    assert min(taken) < 1.0
    assert {one.workers > 0 for one in plan.models} == {True}
    assert len(placed(plan)) >= 200


def test_a_refusal_does_not_take_long():
    """Each of these needs a search through all placements, or a reason not to."""
    many_workers = [model(name, fixed(number)) for name, number in (("a", 19), ("b", 23), ("c", 23))]
    in_pieces = [model(name, fixed(number), gib=7) for name, number in (("a", 9), ("b", 10))]
    begun = time.process_time()
    for asked in (
        facts(many_workers, [gpu(0, cap=34), gpu(1, cap=31, attached=8)]),
        facts(in_pieces, [gpu(0, 48.5), gpu(1, 48.5), gpu(2, 41.1)]),
        many(1, 200, 8),
    ):
        assert isinstance(attempt(asked), PlanError)
    assert time.process_time() - begun < 3.0


def test_the_exact_search_keeps_only_what_it_needs(monkeypatch):
    """Of each piece of the last join one row is kept, and not the piece behind it."""
    monkeypatch.setattr(exact, "_CHUNK", 1000)
    rising = profile(on={1: 100, 6: 500})
    instance = problem_of(facts([model(name, profile=rising) for name in "abc"], [gpu(0), gpu(1)]), mps=True).instance
    tracemalloc.start()
    exact.best(instance, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2**20


#: On large instances the search is not exact: more room may cost so much of the weighted mean throughput at most. Seen
#: on these seeds; it is no property that holds for all, so other seeds are not drawn.
TOLERANCE = 0.02


@pytest.mark.parametrize("larger", [{"memory_total": 90 * GIB}, {"cap": 9}], ids=["memory", "cap"])
@pytest.mark.parametrize("seed", range(6))
def test_more_room_costs_a_large_instance_little_at_most(seed, larger):
    asked = many(seed, 24, 8, memory=48, cap=8)
    plan = make_plan(asked)
    more = replace(asked, gpus=(replace(asked.gpus[0], **larger), *asked.gpus[1:]))
    assert gained(asked, plan.objective, make_plan(more).objective) >= 1 - TOLERANCE


def test_the_search_for_large_instances_is_near_the_best_on_small_ones():
    reached = []
    for seed in range(300):
        asked = many(seed, 1 + seed % 3, 1 + seed % 2, memory=60, cap=16)
        instance = problem_of(asked, mps=True).instance
        placed = exact.polished(instance, greedy.good(instance))
        best = exact.best(instance, placed)
        reached.append(gained(asked, instance.objective(best), instance.objective(placed)))
    reached.sort()
    assert reached[0] >= 0.9
    assert reached[len(reached) // 20] >= 0.98


def gained(asked: Facts, before: float, after: float) -> float:
    """Weighted geometric mean of the models' throughputs after by before."""
    return math.exp((after - before) / sum(one.weight for one in asked.models))
