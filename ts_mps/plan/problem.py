"""From facts to numbers: which models get workers on a GPU, and the room that each GPU has for them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, replace

from ts_mps.plan.curve import Curve, curve_of
from ts_mps.plan.facts import SERVER_BYTES, Facts, GpuFacts, ModelFacts, Policy
from ts_mps.plan.instance import Instance, Load, cost_of
from ts_mps.plan.share import percentage_of


@dataclass(frozen=True)
class Problem:
    """A planning problem in words and in numbers, with MPS or without.

    Attributes:
        facts: What it was made from.
        mps: Whether workers are MPS clients.
        positions: Which of ``facts.models`` get workers on a GPU, in the order of ``instance.loads``.
        instance: The numbers.
    """

    facts: Facts
    mps: bool
    positions: tuple[int, ...]
    instance: Instance

    @property
    def models(self) -> tuple[ModelFacts, ...]:
        """The models of ``instance.loads``."""
        return tuple(self.facts.models[position] for position in self.positions)

    def with_auto_workers(self, workers: float) -> Problem:
        """The same with so many workers for the models without a fixed number."""
        return replace(self, instance=replace(self.instance, auto_workers=workers))

    @property
    def nothing_measured(self) -> bool:
        """All numbers of workers are given and no throughput is known: there is nothing to weigh."""
        return all(load.fixed and not load.curve.measured for load in self.instance.loads)


def uses_gpu(facts: Facts, model: ModelFacts) -> bool:
    """Whether its workers are on a GPU."""
    return bool(facts.gpus) and model.on_gpu


def gpu_positions(facts: Facts) -> tuple[int, ...]:
    """Positions of the models that get workers on a GPU; a model may also be loaded without workers."""
    models = enumerate(facts.models)
    return tuple(position for position, model in models if uses_gpu(facts, model) and model.workers.most != 0)


def memory_of(model: ModelFacts) -> int:
    """Bytes of GPU memory of one worker; 0 where not known.

    Its context is charged in full under a thread percentage too, although it shrinks with it (measured on an H200,
    driver 580: 517 MiB at 100 %, 275 at 50, 145 at 25). A policy's percentage follows from the number of workers, which
    memory decides in turn, and a profile holds a few percentages only; too much is the safe side.
    """
    return model.memory.total if model.memory else 0


def budget_of(gpu: GpuFacts, policy: Policy, mps: bool) -> int | None:
    """Bytes that workers may hold on a GPU; None where its memory is not known.

    All of it, less the margin, less what others hold, less what the MPS server keeps for itself.
    """
    if not gpu.memory_total:
        return None
    free = gpu.memory_total * (1 - policy.memory_margin) - gpu.memory_taken - (SERVER_BYTES if mps else 0)
    return max(0, math.floor(free))


def clients_of(gpu: GpuFacts, policy: Policy) -> int:
    """MPS clients that a plan may add on a GPU."""
    return max(0, gpu.cap - policy.reserve - gpu.attached)


def problem_of(facts: Facts, mps: bool, auto_workers: float = math.inf) -> Problem:
    """The numbers of the facts.

    Args:
        facts: Checked facts.
        mps: Whether workers are MPS clients.
        auto_workers: Workers that all models on GPUs without a fixed number may have together.

    Raises:
        PlanError: A profile is of another batch size.
    """
    positions = gpu_positions(facts)
    models = [facts.models[position] for position in positions]
    loads = [_load(facts, model, curve_of(model, mps)) for model in models]
    clients = [float(clients_of(gpu, facts.policy)) if mps else math.inf for gpu in facts.gpus]
    if mps:
        widest = int(min(max(clients), sum(load.each for load in loads))) + 1  # one more, for the reasons
        loads = [_limited(load, model, facts.policy, widest) for load, model in zip(loads, models, strict=True)]
    budgets = [budget_of(gpu, facts.policy, mps) for gpu in facts.gpus]
    instance = Instance(
        loads=tuple(loads),
        clients=tuple(clients),
        budgets=tuple(math.inf if budget is None else float(budget) for budget in budgets),
        auto_workers=auto_workers,
        cost=cost_of(facts.policy.least_gain),
    )
    return Problem(facts, mps, positions, instance)


def _load(facts: Facts, model: ModelFacts, curve: Curve) -> Load:
    wish = model.workers
    sequence = model.device_ids if len(set(model.device_ids)) > 1 else ()  # one GPU alone is no matter of turns
    allowed = tuple(
        position in model.device_ids if model.device_ids else not model.gpus or gpu.uuid in model.gpus
        for position, gpu in enumerate(facts.gpus)
    )
    if wish.fixed:
        each = most = wish.least
    else:
        each = max(curve.last, wish.least)
        places = _turns(sequence, curve.last) if sequence else curve.last * sum(allowed)
        known = max(places, wish.least)
        most = known if wish.most is None else min(wish.most, known)
        each = most if sequence else min(each, most)
    return Load(
        least=wish.least,
        most=most,
        each=each,
        fixed=wish.fixed,
        weight=model.weight,
        memory=memory_of(model),
        waived=wish.fixed and model.memory is not None and model.memory.source == "estimate",
        allowed=allowed,
        sequence=sequence,
        curve=curve,
    )


def _turns(sequence: tuple[int, ...], each: int) -> int:
    """How many workers can follow a sequence of GPUs until one of them would get more than ``each``."""
    given: Counter[int] = Counter()
    for position in itertools.cycle(sequence):
        if given[position] == each:
            break
        given[position] += 1
    return sum(given.values())


def _limited(load: Load, model: ModelFacts, policy: Policy, widest: int) -> Load:
    percentages = tuple(percentage_of(model, policy, workers) for workers in range(widest + 1))
    return replace(load, percentages=percentages) if any(percentages) else load
