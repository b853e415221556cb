"""Why nothing fits, and the nearest that does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ts_mps.errors import PlanError
from ts_mps.plan import exact
from ts_mps.plan.instance import Instance
from ts_mps.plan.problem import Problem
from ts_mps.plan.solve import can_be_placed
from ts_mps.plan.words import clients, gib, kept, short, title, workers

#: After all models have shrunk by the same part, workers are given back one by one, while trials place no more workers
#: than this: a second or two.
_TRIED = 30_000


def refusal(problem: Problem) -> PlanError:
    """The error for a problem that has no placement: the constraint with its figures, and the nearest that fits."""
    near = nearest(problem.instance)
    ways = ["make more GPUs visible"]
    ways += ["use --mps off"] if problem.mps and _fits_without_cap(problem.instance) else []
    if near is None:
        return PlanError(constraint(problem), f"Not even one worker fits: free the GPUs, or {', or '.join(ways)}.")
    ways.insert(0, "ask for fewer workers (--workers N, or minWorkers in model-config.yaml)")
    listed = ", ".join(
        f"{title(model, problem.models)} {count}" for model, count in zip(problem.models, near, strict=True)
    )
    return PlanError(
        constraint(problem), f"Nearest that fits: {listed}. Plan that, or {', '.join(ways[:-1])}, or {ways[-1]}."
    )


def nearest(instance: Instance) -> tuple[int, ...] | None:
    """The least numbers lowered as little, and as evenly, as makes them fit; None if not even one worker fits.

    A model of which no single worker fits gets none.
    """
    asked = [load.least for load in instance.loads]
    shown = [int(min(least, _room(instance, model))) for model, least in enumerate(asked)]
    order = sorted(range(len(shown)), key=lambda model: (-instance.loads[model].memory, -model))
    while not _fits(instance, [min(1, least) for least in shown]):
        shown[next(model for model in order if shown[model])] = 0
    if not any(shown):
        return None
    if _fits(instance, shown):
        return tuple(shown)
    low, high = 0.0, 1.0  # the part of these numbers that every model gets
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if _fits(instance, _part(shown, middle)) else (low, middle)
    counts = _part(shown, low)
    blocked: set[int] = set()
    for _ in range(_TRIED // sum(shown)):
        hungry = [model for model in range(len(shown)) if counts[model] < shown[model] and model not in blocked]
        if not hungry:
            break
        model = min(hungry, key=lambda model: (counts[model] / shown[model], model))
        more = [count + (number == model) for number, count in enumerate(counts)]
        if _fits(instance, more):
            counts = more
        else:
            blocked.add(model)
    return tuple(counts)


def _room(instance: Instance, model: int) -> float:
    """The most workers of a model that fit where there are no others."""
    load = instance.loads[model]
    rooms = [instance.alone_on(model, gpu) for gpu in range(len(instance.clients))]
    if not load.sequence:
        return sum(rooms)
    placed = [0] * len(rooms)
    for worker in range(load.least):
        gpu = load.sequence[worker % len(load.sequence)]
        if placed[gpu] >= rooms[gpu]:
            return worker
        placed[gpu] += 1
    return load.least


def _part(shown: Sequence[int], part: float) -> list[int]:
    return [max(min(1, least), math.floor(least * part)) for least in shown]


def _fits(instance: Instance, counts: Sequence[int]) -> bool:
    loads = tuple(
        replace(load, least=count, most=count, each=count) for load, count in zip(instance.loads, counts, strict=True)
    )
    return can_be_placed(replace(instance, loads=loads))


def _fits_without_cap(instance: Instance) -> bool:
    free = replace(instance, clients=(math.inf,) * len(instance.clients))
    return _fits(free, [load.least for load in instance.loads])


def constraint(problem: Problem) -> str:
    """The sentence for what stands against the least numbers: the smallest group of GPUs first."""
    sentence = _on_one_gpu(problem) or _one_worker(problem) or _in_all(problem)
    if sentence:
        return sentence
    instance, facts = problem.instance, problem.facts
    asked = _asked(problem)
    sizes = _listed(
        f"{short(gpu)} {gib(budget) if gpu.memory_total else 'unknown memory'}"
        + (f" and {room:g} clients" if problem.mps else "")
        for gpu, budget, room in zip(facts.gpus, instance.budgets, instance.clients, strict=True)
    )
    if exact.is_small(instance):
        return f"The workers asked for ({asked}) cannot be divided among the GPUs, which have room for {sizes}."
    # Where not all placements are searched, there may be one.
    return f"No placement was found for the workers asked for ({asked}) on the GPUs, which have room for {sizes}."


def _asked(problem: Problem) -> str:
    memories = problem.instance.firm_memory
    return _listed(
        f"{title(model, problem.models)}: {load.least}" + (f" x {gib(memory)}" if memory else "")
        for model, load, memory in zip(problem.models, problem.instance.loads, memories, strict=True)
        if load.least
    )


def _listed(parts: Iterable[str]) -> str:
    """The first ten, and how many more."""
    every = list(parts)
    return ", ".join(every[:10]) + (f" and {len(every) - 10} more" if len(every) > 10 else "")


def _on_one_gpu(problem: Problem) -> str | None:
    """Too much for a GPU of workers that may be nowhere else."""
    instance = problem.instance
    for gpu, card in enumerate(problem.facts.gpus):
        bound = [_bound_to(instance, model, gpu) for model in range(len(instance.loads))]
        named = _listed(
            f"{title(model, problem.models)}: {count}"
            for model, count in zip(problem.models, bound, strict=True)
            if count
        )
        if sum(bound) > instance.clients[gpu]:
            return (
                f"{card.label} would get {workers(sum(bound))}, and its MPS server takes {clients(card.cap)}"
                f"{kept(card.attached, problem.facts.policy.reserve)} (asked for: {named})."
            )
        size = sum(count * memory for count, memory in zip(bound, instance.firm_memory, strict=True))
        if size > instance.budgets[gpu]:
            return (
                f"{card.label} would get workers that need {gib(size)}, and its budget is "
                f"{gib(instance.budgets[gpu])} (asked for: {named})."
            )
    return None


def _bound_to(instance: Instance, model: int, gpu: int) -> int:
    load = instance.loads[model]
    if load.sequence:
        return sum(load.sequence[worker % len(load.sequence)] == gpu for worker in range(load.least))
    return load.least if load.allowed[gpu] and sum(load.allowed) == 1 else 0


def _one_worker(problem: Problem) -> str | None:
    """A worker that is too large for every GPU that it may use."""
    instance = problem.instance
    for model, load in enumerate(instance.loads):
        budgets = [budget for budget, fine in zip(instance.budgets, load.allowed, strict=True) if fine]
        if load.least and instance.firm_memory[model] > max(budgets):
            facts = problem.models[model]
            source = f" ({facts.memory.source})" if facts.memory else ""
            return (
                f"One worker of model {facts.name} needs {gib(load.memory)}{source}, and the largest budget of the "
                f"GPUs that it may use is {gib(max(budgets))}."
            )
    return None


def _in_all(problem: Problem) -> str | None:
    """Too much for all GPUs together."""
    instance, facts = problem.instance, problem.facts
    asked = sum(load.least for load in instance.loads)
    if asked > sum(instance.clients):
        attached = sum(gpu.attached for gpu in facts.gpus)
        less = kept(attached, facts.policy.reserve * len(facts.gpus))
        caps = sum(gpu.cap for gpu in facts.gpus)
        return (
            f"The GPUs would get {workers(asked)}, and their MPS servers take {clients(caps)}{less} "
            f"(asked for: {_asked(problem)})."
        )
    size = sum(load.least * memory for load, memory in zip(instance.loads, instance.firm_memory, strict=True))
    if size > sum(instance.budgets):
        return (
            f"The workers asked for need {gib(size)} ({_asked(problem)}), and the budgets of the GPUs are "
            f"{gib(sum(instance.budgets))} together."
        )
    return None
