"""The best placement of a small instance: all of them, with those left out that cannot be the best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ts_mps.plan.instance import Counts, Floats, Instance, in_sequence

#: Instances of up to so many placements are solved exactly: three models of 16 workers on two GPUs are within.
EXACT_SIZE = 3e7

#: And of up to so many on each GPU, and so many GPUs, which keeps the tables within a few hundred MiB.
EXACT_TABLE = 2e6
EXACT_GPUS = 4

#: And of up to so many ways to choose the workers of models that follow a sequence of GPUs: each has tables of its own.
EXACT_PINNED = 300

#: Larger ones are polished up to these sizes.
POLISHED_TABLE = 5e4
POLISHED_GPUS = 8
POLISHED_ROUNDS = 4

#: Objectives nearer than this are the same; then fewer workers win, then more of them on the GPU of lower index.
TIE = 1e-9

_CHUNK = 1_000_000


@dataclass(frozen=True)
class _Table:
    """Placements on the first GPUs: throughput and workers by model, and the workers on each of those GPUs."""

    throughput: Floats
    workers: npt.NDArray[np.int64]
    placed: npt.NDArray[np.int64]

    def only(self, chosen: npt.NDArray[np.bool_]) -> _Table:
        return _Table(self.throughput[chosen], self.workers[chosen], self.placed[chosen])


def is_small(instance: Instance) -> bool:
    """Whether :func:`best` finds the best placement in a few seconds."""
    if len(instance.clients) > EXACT_GPUS or math.prod(map(len, _totals(instance))) > EXACT_PINNED:
        return False
    return instance.table_size() <= EXACT_TABLE and instance.size() <= EXACT_SIZE


def best(instance: Instance, incumbent: Counts | None) -> Counts | None:
    """The placement of the highest objective, shape (GPUs, models); None if there is none.

    Args:
        instance: What to place; small.
        incumbent: A placement that fits, from which bounds are taken. The better, the faster.
    """
    found = [placed for pinned in _pinned(instance) if (placed := _best_of(instance, pinned, incumbent)) is not None]
    if not found:
        return None
    values = np.array([instance.objective(placed) for placed in found])
    workers = np.array([placed.sum() for placed in found])
    return found[_pick(values, workers)]


def can_be_polished(instance: Instance) -> bool:
    """Whether :func:`polished` takes a second at most."""
    return len(instance.clients) <= POLISHED_GPUS and instance.table_size() <= POLISHED_TABLE


def polished(instance: Instance, counts: Counts) -> Counts:
    """The same placement or a better one: GPU by GPU the best for what the other GPUs have, until nothing changes."""
    counts = counts.copy()
    least = np.array([load.least for load in instance.loads])
    tables = [_one_gpu(instance, _as_it_is(instance, counts), gpu) for gpu in range(len(counts))]
    for _ in range(POLISHED_ROUNDS):
        before = counts.copy()
        for gpu, table in enumerate(tables):
            others = np.delete(counts, gpu, axis=0)
            workers = table.workers + others.sum(axis=0)
            fine = _possible(instance, workers, least)
            throughput = table.throughput[fine] + instance.throughput(others).sum(axis=0)
            values = instance.value(throughput, workers[fine])
            chosen = _pick(values, workers[fine].sum(axis=1))
            if values[chosen] > instance.objective(counts) + TIE:
                counts[gpu] = table.workers[fine][chosen]
        if (counts == before).all():
            break
    return counts


def _as_it_is(instance: Instance, counts: Counts) -> dict[int, Counts]:
    return {model: counts[:, model] for model, load in enumerate(instance.loads) if load.sequence}


def _totals(instance: Instance) -> list[range]:
    """The numbers of workers that each model may have that follows a sequence of GPUs."""
    return [range(load.least, load.most + 1) for load in instance.loads if load.sequence]


def _pinned(instance: Instance) -> Iterator[dict[int, Counts]]:
    """Every choice of workers by GPU for the models that follow a sequence of GPUs."""
    gpus = len(instance.clients)
    models = [model for model, load in enumerate(instance.loads) if load.sequence]
    for choice in itertools.product(*_totals(instance)):
        yield {
            model: in_sequence(instance.loads[model], workers, gpus)
            for model, workers in zip(models, choice, strict=True)
        }


def _best_of(instance: Instance, pinned: dict[int, Counts], incumbent: Counts | None) -> Counts | None:
    bound = _Bound(instance, incumbent)
    tables = [_one_gpu(instance, pinned, gpu) for gpu in range(len(instance.clients))]
    if any(len(table.workers) == 0 for table in tables):
        return None
    hopes = [bound.part(table).max() for table in tables]
    reach = [table.workers.max(axis=0) for table in tables]
    state = tables[0]
    for gpu in range(1, len(tables) + 1):
        rest = sum(hopes[gpu:], 0.0)
        missing = np.array([load.least for load in instance.loads]) - sum(reach[gpu:], np.zeros(1, dtype=np.int64))
        state = state.only(_possible(instance, state.workers, missing) & bound.keeps(bound.part(state) + rest))
        if gpu < len(tables):
            state = _joined(
                instance, state, tables[gpu], bound, last=gpu == len(tables) - 1, rest=sum(hopes[gpu + 1 :])
            )
    if len(state.workers) == 0:
        return None
    chosen = _pick(instance.value(state.throughput, state.workers), state.workers.sum(axis=1))
    placed: Counts = state.placed[chosen]
    return placed


class _Bound:
    """An upper bound that is a sum over the GPUs, from the tangent of the logarithm at a known placement.

    ln x <= ln a + (x - a) / a for the throughput a of the known placement, so that the objective is at most a constant
    plus, for each GPU, what is linear in its own throughputs and workers.
    """

    def __init__(self, instance: Instance, incumbent: Counts | None) -> None:
        self.weights = instance.weights
        self.cost = instance.cost
        if incumbent is None:
            self.slope, self.least = np.zeros(len(instance.loads)), -np.inf
            return
        known = instance.throughput(incumbent).sum(axis=0)
        self.slope = np.where(known > 0, 1 / np.where(known > 0, known, 1.0), 0.0)
        if (known <= 0).any():  # a model without workers: no tangent, so nothing is left out
            self.least = -np.inf
            return
        constant = float((self.weights * (np.log(known) - 1)).sum())
        self.least = instance.objective(incumbent) - constant - 10 * TIE

    def part(self, table: _Table) -> Floats:
        value: Floats = table.throughput @ (self.weights * self.slope) - table.workers @ self.weights * self.cost
        return value

    def keeps(self, parts: Floats) -> npt.NDArray[np.bool_]:
        result: npt.NDArray[np.bool_] = parts >= self.least - 1e-12 * np.abs(parts)
        return result


def _one_gpu(instance: Instance, pinned: dict[int, Counts], gpu: int) -> _Table:
    """All that fits on one GPU, most workers of the first model first."""
    ranges = []
    for model, load in enumerate(instance.loads):
        if model in pinned:
            ranges.append(np.array([pinned[model][gpu]]))
            continue
        most = int(min(load.each, load.most, instance.alone_on(model, gpu)))
        ranges.append(np.arange(most, -1, -1))
    counts = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(ranges)).astype(np.int64)
    counts = counts[instance.fits(counts, gpu)]
    return _Table(instance.throughput(counts), counts, counts[:, None, :])


def _possible(instance: Instance, workers: npt.NDArray[np.int64], missing: Counts) -> npt.NDArray[np.bool_]:
    most = np.array([load.most for load in instance.loads])
    autos = workers[:, instance.auto].sum(axis=1) <= instance.auto_workers
    result: npt.NDArray[np.bool_] = autos & (workers <= most).all(axis=1) & (workers >= missing).all(axis=1)
    return result


def _joined(instance: Instance, left: _Table, right: _Table, bound: _Bound, last: bool, rest: float) -> _Table:
    """Every pair that may still become the best; after the last GPU only the best of each part."""
    least = np.array([load.least for load in instance.loads])
    hope, hope_right = bound.part(left) + rest, bound.part(right)
    parts = []
    for first, second in _pairs(instance, left.workers, right.workers, last):
        promising = bound.keeps(hope[first] + hope_right[second])
        first, second = first[promising], second[promising]
        workers = left.workers[first] + right.workers[second]
        fine = _possible(instance, workers, least if last else np.zeros_like(least))
        first, second, workers = first[fine], second[fine], workers[fine]
        throughput = left.throughput[first] + right.throughput[second]
        if last and len(workers):
            one = _pick(instance.value(throughput, workers), workers.sum(axis=1))
            kept = np.array([one])  # no slice: that would keep all the others in memory behind it
            first, second, workers, throughput = first[kept], second[kept], workers[kept], throughput[kept]
        placed = np.concatenate([left.placed[first], right.placed[second]], axis=1)
        parts.append(_Table(throughput, workers, placed))
    if not parts:
        nowhere = np.zeros((0, left.placed.shape[1] + 1, len(least)), dtype=np.int64)
        return _Table(left.throughput[:0], left.workers[:0], nowhere)
    return _Table(
        np.concatenate([part.throughput for part in parts]),
        np.concatenate([part.workers for part in parts]),
        np.concatenate([part.placed for part in parts]),
    )


def _pairs(
    instance: Instance, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64], last: bool
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Rows of both tables that can go together, some at a time, in the order of the rows.

    On the last GPU a model whose number is given gets what the others left over, so only such rows are paired.
    """
    given = [model for model, load in enumerate(instance.loads) if last and load.least == load.most]
    radix = np.cumprod([1, *(instance.loads[model].most + 1 for model in given)])[:-1]
    wanted = (np.array([instance.loads[model].most for model in given], dtype=np.int64) - left[:, given]) @ radix
    keys = right[:, given] @ radix
    order = np.argsort(keys, kind="stable")
    begin, end = np.searchsorted(keys[order], wanted, "left"), np.searchsorted(keys[order], wanted, "right")
    partners = np.where((left[:, given] <= [instance.loads[model].most for model in given]).all(axis=1), end - begin, 0)
    rows = max(1, _CHUNK // max(1, int(partners.max(initial=0))))
    for start in range(0, len(left), rows):
        some = partners[start : start + rows]
        first = np.repeat(np.arange(start, start + len(some)), some)
        within = np.arange(len(first)) - np.repeat(np.cumsum(some) - some, some)
        yield first, order[begin[first] + within]


def _pick(values: Floats, workers: npt.NDArray[np.int64]) -> int:
    """The highest value; of equal ones the fewest workers; of those the first."""
    near = np.flatnonzero(values >= values.max() - TIE)
    return int(near[np.argmin(workers[near])])
