"""Why a worker is on its GPU."""

from __future__ import annotations

from ts_mps.plan.decide import Decision
from ts_mps.plan.words import short


def why_here(decision: Decision, position: int, gpu: int) -> str:
    """The reason for a worker's GPU, as a sentence.

    Args:
        decision: What was decided.
        position: The worker's model among the facts' models; it has workers on a GPU.
        gpu: The GPU's position.
    """
    problem, counts = decision.problem, decision.counts
    model, card = problem.facts.models[position], problem.facts.gpus[gpu]
    number = problem.positions.index(position)
    here, total = int(counts[gpu, number]), int(counts[:, number].sum())
    if model.device_ids:
        return f"deviceIds {list(model.device_ids)} of its model-config.yaml"
    if len(problem.facts.gpus) == 1:
        return f"{short(card)} is the only GPU in use"
    if sum(problem.instance.loads[number].allowed) == 1:
        return f"it may use {short(card)} only"
    if problem.nothing_measured:
        return f"spread: {short(card)} has {int(counts[gpu].sum())} of the {int(counts.sum())} workers"
    throughput = decision.prediction.by_gpu[:, number]
    part = throughput[gpu] / throughput.sum()
    return f"{here} of its {total} workers are on {short(card)}, where they make {100 * part:.0f} % of its throughput"
