"""What the reader of a plan should know although nothing forbids it."""

from __future__ import annotations

from ts_mps.plan.cores import threads_of, workers_of
from ts_mps.plan.decide import Decision
from ts_mps.plan.facts import Facts
from ts_mps.plan.model import PlannedGpu
from ts_mps.plan.words import gib, rate, short, workers


def warnings_of(facts: Facts, decision: Decision, gpus: tuple[PlannedGpu, ...], count: int) -> tuple[str, ...]:
    """One sentence each, the same ones in the same order for the same plan.

    Args:
        facts: What was planned for.
        decision: What was decided.
        gpus: The plan's GPUs.
        count: Workers in all.
    """
    found = []
    cores, each = len(facts.host.cores), facts.policy.cores_per_worker
    if count > workers_of(facts.host, facts.policy):
        found.append(
            f"{workers(count)} on {cores} cores: each needs {each:g}, so they will wait for each other. "
            "Ask for fewer, or give the host more cores."
        )
    if decision.prediction.carried < 1:
        found.append(
            f"Workers and frontend would keep {decision.prediction.busy:.0f} cores busy, and there are {cores}: they "
            f"carry {decision.prediction.carried:.0%} of the throughput that the GPUs would make."
        )
    for position, gpu in enumerate(gpus):
        if gpu.memory_total and gpu.memory_planned > gpu.memory_budget:
            found.append(
                f"{short(facts.gpus[position])}: its workers are estimated to hold {gib(gpu.memory_planned)}, and its "
                f"budget is {gib(gpu.memory_budget)}. Measure them (ts-mps profile), or ask for fewer."
            )
    for number, model in enumerate(decision.problem.models):
        made, computed = decision.prediction.by_gpu[:, number].sum(), decision.prediction.computed[number]
        if computed < 0.9 * made:
            found.append(
                f"{model.name}: each worker gets {threads_of(facts.host, count)} of {cores} cores, with which its "
                f"workers make {rate(computed)} in place of {rate(made)}. Plan fewer workers, or give the host more "
                "cores."
            )
        used = {gpu.name for position, gpu in enumerate(facts.gpus) if decision.counts[position, number]}
        if model.profile is not None and used - {model.profile.gpu}:
            others = ", ".join(sorted(used - {model.profile.gpu}))
            found.append(
                f"The profile of {model.name} was measured on {model.profile.gpu}, and it is planned on {others}: "
                "its throughput and memory may differ."
            )
        if model.profile is not None and model.profile.machine.get("incomplete"):
            found.append(
                f"The profile of {model.name} does not hold all that was to be measured. "
                f"{model.profile.machine['incomplete']}"
            )
        limit = model.memory_limit if decision.problem.mps else None
        if model.memory is not None and limit is not None and limit < model.memory.total:
            found.append(
                f"The memory limit of {model.name} is {gib(limit)}, and a worker needs {gib(model.memory.total)} "
                f"({model.memory.source}): it may not load, or run out of memory in its batches. Raise the limit."
            )
    return tuple(found)
