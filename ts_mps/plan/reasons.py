"""Why each model has the workers that it has: the constraint that would have to give way for one more."""

from __future__ import annotations

import math

import numpy as np

from ts_mps.plan.instance import Counts, Floats
from ts_mps.plan.problem import Problem
from ts_mps.plan.words import clients, gib, kept, ordinal, percent, short, workers

#: A worker that raises the objective by no more than this is not worth a constraint.
WORTH = 1e-9


def why_so_many(problem: Problem, counts: Counts, gains: Floats, model: int) -> str:
    """The reason for a model's number of workers, as a sentence.

    One more worker is tried on each GPU that the model may use. Where the objective would rise, what forbids it is
    the reason; where it would rise nowhere, its gain is.

    Args:
        problem: What was placed.
        counts: Where, shape (GPUs, models).
        gains: :func:`ts_mps.plan.greedy.marginal` of them.
        model: Which, by position.
    """
    facts, instance = problem.facts, problem.instance
    name, wish, load = problem.models[model].name, problem.models[model].workers, instance.loads[model]
    total = int(counts[:, model].sum())
    if wish.fixed:
        return f"asked for: {total} ({wish.source})"
    best = int(np.argmax(gains[:, model]))
    if gains[best, model] > WORTH:
        return _forbidden(problem, counts, model, best)
    if total == wish.least > 1 and _fewer_is_better(problem, counts, model):
        return f"minimum: at least {wish.least} ({wish.source})"
    if not load.curve.measured:
        rule = "two workers" if problem.mps else "one worker"
        return f"no profile: at most {rule} for each GPU, fewer beside other models"
    if all(counts[np.isfinite(gains[:, model]), model] >= load.curve.last) and _rises_to_the_end(load.curve.rates):
        return f"measured: the profile goes no further than {workers(load.curve.last)} on a GPU"
    before = float(instance.throughput(counts)[:, model].sum())
    after = float(instance.throughput(_with(counts, best, model, 1))[:, model].sum())
    gain = after / before - 1 if before else math.inf
    least = facts.policy.least_gain
    if gain <= WORTH:
        return f"gain: the {ordinal(total + 1)} worker would add nothing"
    if gain <= least + WORTH:
        below = "less than" if gain < least - WORTH else "no more than"
        return f"gain: the {ordinal(total + 1)} worker would add {percent(gain)}, {below} {percent(least)}"
    # What the objective gains, as a gain of this model alone would bring it; the rest is the other models' loss.
    worth = math.expm1(gains[best, model] / load.weight + instance.cost)
    below = "less than" if worth < least - WORTH else "no more than"
    return (
        f"share: the {ordinal(total + 1)} worker would add {percent(gain)} to the throughput of {name}, but with "
        f"what the other models of {short(facts.gpus[best])} would lose it is worth {percent(worth)}, {below} "
        f"{percent(least)}"
    )


def _with(counts: Counts, gpu: int, model: int, by: int) -> Counts:
    changed = counts.copy()
    changed[gpu, model] += by
    result: Counts = changed
    return result


def _fewer_is_better(problem: Problem, counts: Counts, model: int) -> bool:
    now = problem.instance.objective(counts)
    places = np.flatnonzero(counts[:, model])
    return any(problem.instance.objective(_with(counts, int(gpu), model, -1)) > now + WORTH for gpu in places)


def _rises_to_the_end(rates: tuple[float, ...]) -> bool:
    return len(rates) < 3 or rates[-1] > rates[-2]


def _forbidden(problem: Problem, counts: Counts, model: int, gpu: int) -> str:
    """What stands against one more worker of a model on a GPU."""
    facts, instance = problem.facts, problem.instance
    wish, load, card = problem.models[model].workers, instance.loads[model], facts.gpus[gpu]
    here, total = counts[gpu], int(counts[:, model].sum())
    autos = int(counts[:, instance.auto].sum())
    if wish.most is not None and total >= wish.most:
        return f"maximum: {total} ({wish.source})"
    if here.sum() >= instance.clients[gpu]:
        less = kept(card.attached, facts.policy.reserve)
        has = f"{short(card)} has {workers(int(here.sum()))}"
        return f"cap: {has}, and its MPS server takes {clients(card.cap)}{less}"
    one = instance.memory[model]
    held = float(here @ instance.memory)
    room = f"the budget of {gib(instance.budgets[gpu])} of {short(card)}"
    if held > instance.budgets[gpu]:
        return f"memory: the workers that were asked for are estimated to hold {gib(held)}, past {room}"
    if held + one > instance.budgets[gpu]:
        if not here[model]:
            return f"memory: other models hold {gib(held)} of {room}; one more worker of {gib(one)} would pass it"
        own = f"{workers(int(here[model]))} x {gib(one)}"
        others = held - here[model] * one
        beside = f" beside {gib(others)} of other models" if others else ""
        return f"memory: {own}{beside} reach {room}; one more would pass it"
    if autos >= instance.auto_workers:
        each = f"{len(facts.host.cores)} cores with {facts.policy.cores_per_worker:g} for each worker"
        if autos == sum(load.least for load in instance.loads if not load.fixed):  # in any case, however few the cores
            return f"cores: {each} carry no more than the least number, {workers(wish.least)} ({wish.source})"
        return f"cores: {each} leave {workers(autos)} to the models on GPUs without a fixed number"
    if here[model] >= load.each:
        return f"measured: the profile goes no further than {workers(load.curve.last)} on a GPU"
    return f"search: no better placement was found for {problem.models[model].name} among those that were tried"
