"""The placement of an instance: exactly the best where that can be searched, a good one where not."""

from __future__ import annotations

from ts_mps.plan import exact, greedy
from ts_mps.plan.instance import Counts, Instance
from ts_mps.plan.problem import Problem


def solve(instance: Instance) -> Counts | None:
    """Workers by GPU and model, shape (GPUs, models); None if no placement fits (large instances: if none was found).

    Equal instances give equal placements. Of equally good ones that with the fewest workers is taken, then that with
    more workers on the GPUs of lower index.
    """
    if instance.overfull():
        return None
    placed = greedy.good(instance)
    if exact.is_small(instance):
        return exact.best(instance, placed)
    return exact.polished(instance, placed) if placed is not None and exact.can_be_polished(instance) else placed


def place(problem: Problem) -> Counts | None:
    """The placement of a problem, as :func:`solve`; where nothing is to be weighed, GPUs get equal numbers."""
    if problem.nothing_measured:
        placed = greedy.balanced(problem.instance, [gpu.attached if problem.mps else 0 for gpu in problem.facts.gpus])
        if placed is not None:
            return placed
    return solve(problem.instance)


def can_be_placed(instance: Instance) -> bool:
    """Whether the least numbers fit; exact for small instances."""
    if instance.overfull():
        return False
    if greedy.minimum(instance) is not None:
        return True
    return exact.is_small(instance) and exact.best(instance, None) is not None
