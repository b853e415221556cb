"""Models on the CPU: how many workers they can use, and why they have so many."""

from __future__ import annotations

import math

import numpy as np

from ts_mps.plan.cores import Party
from ts_mps.plan.curve import curve_of
from ts_mps.plan.facts import Facts, ModelFacts
from ts_mps.plan.instance import cost_of
from ts_mps.plan.words import workers


def cpu_party(facts: Facts, model: ModelFacts) -> Party:
    """How a model on the CPU without a fixed number shares the cores.

    It has one worker at least. A profile that was measured on a CPU says how many pay for themselves; without one,
    there may be as many as the cores carry.

    Raises:
        PlanError: The profile is of another batch size.
    """
    wish = model.workers
    least = max(1, wish.least)
    most = math.inf if wish.most is None else wish.most
    return Party(model.weight, least, max(least, min(most, len(facts.host.cores), _paying(facts, model))))


def why_on_cpu(facts: Facts, model: ModelFacts, count: int) -> str:
    """The reason for a number of workers on the CPU, as a sentence."""
    wish = model.workers
    if wish.fixed:
        return f"asked for: {count} ({wish.source})"
    if wish.most is not None and count >= wish.most:
        return f"maximum: {count} ({wish.source})"
    paying, cores = _paying(facts, model), len(facts.host.cores)
    if count == paying:
        if count == curve_of(model, mps=False).last:
            return f"measured: the profile goes no further than {workers(count)} on the CPU"
        return f"gain: more than {workers(count)} would not pay for themselves on the CPU"
    if count == wish.least > 1:
        return f"minimum: at least {count} ({wish.source})"
    if count == cores:
        return f"cores: one worker for each of {cores} cores"
    return f"cores: its part of {cores} cores with {facts.policy.cores_per_worker:g} for each worker"


def rate_on_cpu(model: ModelFacts, count: int) -> float | None:
    """Predicted requests per second of so many workers; None where none were measured on a CPU.

    Raises:
        PlanError: The profile is of another batch size.
    """
    measured = model.profile is not None and model.profile.gpu == "CPU"
    return curve_of(model, mps=False).rate(count) if measured else None


def _paying(facts: Facts, model: ModelFacts) -> float:
    """The number of workers from which on the next one gains too little; infinite where that was not measured."""
    if model.profile is None or model.profile.gpu != "CPU":
        return math.inf
    rates = np.array(curve_of(model, mps=False).rates[1:])
    numbers = np.arange(1, len(rates) + 1)
    return float(numbers[np.argmax(np.log(rates) - cost_of(facts.policy.least_gain) * numbers)])
