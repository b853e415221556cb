"""From facts to a plan: how many workers of each model, on which GPU, with what share, and why. Pure.

``curve`` says what n workers of a model answer on a GPU, ``instance`` what models on one GPU leave each other and what
a placement is worth; ``solve`` finds the placement, with MPS and without (``decide``); ``refuse`` and ``reasons`` name
the constraint that forbids all placements, or one more worker.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from ts_mps.plan.check import check
from ts_mps.plan.cores import cores_of, pool_of, threads_of
from ts_mps.plan.decide import Decision, decide
from ts_mps.plan.facts import Facts, ModelFacts
from ts_mps.plan.greedy import marginal
from ts_mps.plan.instance import Floats
from ts_mps.plan.model import Plan, PlannedGpu, PlannedModel, Slot
from ts_mps.plan.problem import budget_of, memory_of
from ts_mps.plan.processor import rate_on_cpu, why_on_cpu
from ts_mps.plan.reasons import why_so_many
from ts_mps.plan.share import granted_sms, memory_limit, percentage_of, percentage_why
from ts_mps.plan.warn import warnings_of
from ts_mps.plan.whereabouts import why_here

#: (model's position among the facts', GPU's position or None for the CPU) of one worker.
_Place = tuple[int, int | None]


def make_plan(facts: Facts) -> Plan:
    """The plan for these facts; equal facts give equal plans.

    Raises:
        PlanError: The facts contradict themselves, a profile is of another batch size, or the workers asked for do
            not fit. It names the constraint with its figures and the nearest plan that fits.
    """
    check(facts)
    decision = decide(facts)
    places = _places(facts, decision)
    gpus = _gpus(facts, decision)
    return Plan(
        gpus=gpus,
        slots=_slots(facts, decision, places),
        models=_models(facts, decision),
        mps=decision.problem.mps,
        mps_why=decision.why,
        warnings=warnings_of(facts, decision, gpus, len(places)),
        objective=decision.objective,
        machine=dict(facts.fingerprints),
    )


def _places(facts: Facts, decision: Decision) -> list[_Place]:
    """One for each worker, model by model; a model's workers go round its GPUs, so that each GPU gets one early."""
    places: list[_Place] = []
    for position, model in enumerate(facts.models):
        number = decision.number(position)
        if number is None:
            places += [(position, None)] * decision.cpu_workers.get(position, 0)
            continue
        left = decision.counts[:, number].copy()
        if model.device_ids:
            places += [(position, model.device_ids[turn % len(model.device_ids)]) for turn in range(int(left.sum()))]
            continue
        while left.any():
            places += [(position, int(gpu)) for gpu in np.flatnonzero(left)]
            left[left > 0] -= 1
    return places


def _slots(facts: Facts, decision: Decision, places: list[_Place]) -> tuple[Slot, ...]:
    threads = threads_of(facts.host, len(places))
    pools = [pool_of(facts.host, gpu.cores) for gpu in facts.gpus]
    pool_by_place = [facts.host.cores if gpu is None else pools[gpu] for _, gpu in places]
    sharing, taken = Counter(pool_by_place), Counter[tuple[int, ...]]()
    slots = []
    for number, ((position, gpu), pool) in enumerate(zip(places, pool_by_place, strict=True)):
        model = facts.models[position]
        cores = cores_of(facts.host, pool, taken[pool], sharing[pool])
        taken[pool] += 1
        why = "no GPU is in use" if model.on_gpu else "its configuration puts it on the CPU"
        slot = Slot(number, model.name, model.version, None, threads, cores, why=why)
        slots.append(slot if gpu is None else _on_gpu(decision, position, gpu, slot))
    return tuple(slots)


def _on_gpu(decision: Decision, position: int, gpu: int, slot: Slot) -> Slot:
    """The same slot with its GPU and its share of it."""
    facts, mps = decision.problem.facts, decision.problem.mps
    model, card, here = facts.models[position], facts.gpus[gpu], int(decision.counts[gpu].sum())
    percentage = percentage_of(model, facts.policy, here) if mps else None
    why = why_here(decision, position, gpu)
    if percentage is not None:
        why += f"; {percentage:g} % of the threads ({percentage_why(model, facts.policy, here)})"
    return replace(
        slot,
        gpu=card.uuid,
        thread_percentage=percentage,
        memory_limit=memory_limit(model.memory_limit) if mps else None,
        priority=model.priority if mps else None,
        sms=granted_sms(card.sms, 100 if percentage is None else percentage),
        why=why,
    )


def _gpus(facts: Facts, decision: Decision) -> tuple[PlannedGpu, ...]:
    mps, instance = decision.problem.mps, decision.problem.instance
    held = decision.counts @ instance.memory if instance.loads else np.zeros(len(facts.gpus))
    return tuple(
        PlannedGpu(
            index=gpu.index,
            uuid=gpu.uuid,
            name=gpu.name,
            cap=gpu.cap if mps else None,
            pipe=gpu.pipe if mps else None,
            cap_why=gpu.cap_why if mps else "",
            reserve=facts.policy.reserve if mps else 0,
            attached=gpu.attached if mps else 0,
            clients=int(decision.counts[position].sum()) if mps else 0,
            memory_total=gpu.memory_total,
            memory_budget=budget_of(gpu, facts.policy, mps) or 0,
            memory_planned=int(held[position]),
        )
        for position, gpu in enumerate(facts.gpus)
    )


def _models(facts: Facts, decision: Decision) -> tuple[PlannedModel, ...]:
    gains = marginal(decision.problem.instance, decision.counts) if decision.problem.positions else np.zeros((0, 0))
    return tuple(
        _model_on_cpu(facts, decision, position)
        if (number := decision.number(position)) is None
        else _model_on_gpu(decision, gains, model, number)
        for position, model in enumerate(facts.models)
    )


def _model_on_cpu(facts: Facts, decision: Decision, position: int) -> PlannedModel:
    model, count = facts.models[position], decision.cpu_workers.get(position, 0)
    return PlannedModel(
        name=model.name,
        version=model.version,
        workers=count,
        why=why_on_cpu(facts, model, count),
        requests_per_second=rate_on_cpu(model, count),
    )


def _model_on_gpu(decision: Decision, gains: Floats, model: ModelFacts, number: int) -> PlannedModel:
    problem, counts = decision.problem, decision.counts
    measured = problem.instance.loads[number].curve.measured
    return PlannedModel(
        name=model.name,
        version=model.version,
        workers=int(counts[:, number].sum()),
        why=why_so_many(problem, counts, gains, number),
        memory=memory_of(model),
        memory_source=model.memory.source if model.memory else "",
        requests_per_second=float(decision.prediction.rates[number]) if measured else None,
    )
