"""Host cores: how many workers they carry, and which of them each worker gets."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ts_mps.plan.facts import HostFacts, Policy


@dataclass(frozen=True)
class Party:
    """Who shares the cores: a model, or several together.

    Attributes:
        weight: Above 0.
        least: Workers that it has in any case.
        most: Workers that it can use.
    """

    weight: float
    least: int
    most: float


def workers_of(host: HostFacts, policy: Policy) -> float:
    """How many workers the host's cores carry."""
    if policy.cores_per_worker == 0:
        return math.inf
    return math.floor(len(host.cores) / policy.cores_per_worker + 1e-9)


def divide(workers: float, parties: Sequence[Party]) -> list[int]:
    """Give out workers one by one to whom the next means most: the highest weight / (workers so far + 1).

    This is D'Hondt's method, in which more to give out never means less for anybody.

    Returns:
        Workers of each party; their sum passes ``workers`` only where the least numbers do.
    """
    given = [party.least for party in parties]
    left = workers - sum(given)
    # The highest claim first; of equal ones the first party's.
    claims = [(-party.weight / (party.least + 1), number) for number, party in enumerate(parties)]
    heapq.heapify(claims)
    while claims and left > 0:
        _, number = heapq.heappop(claims)
        if given[number] < parties[number].most:
            given[number] += 1
            left -= 1
            heapq.heappush(claims, (-parties[number].weight / (given[number] + 1), number))
    return given


def threads_of(host: HostFacts, workers: int) -> int:
    """Intra-op threads of each worker; 0 where the user decided."""
    return max(1, len(host.cores) // max(1, workers)) if host.set_threads else 0


def pool_of(host: HostFacts, near: tuple[int, ...]) -> tuple[int, ...]:
    """The host's cores near a GPU; all of them where that is not known, or none is near."""
    return tuple(core for core in host.cores if core in near) or host.cores


def cores_of(host: HostFacts, pool: tuple[int, ...], position: int, workers: int) -> tuple[int, ...]:
    """The cores that a worker is pinned to; empty for no pinning.

    Args:
        host: All cores, and the kind of affinity.
        pool: Cores that are right for it, from :func:`pool_of`.
        position: The worker's number among those of the same pool, on whatever GPU.
        workers: How many those are.
    """
    if host.affinity == "none":
        return ()
    if host.affinity == "cores":
        share = len(pool) // workers
        return pool[position * share : (position + 1) * share] if share else (pool[position % len(pool)],)
    return pool if len(pool) < len(host.cores) else ()
