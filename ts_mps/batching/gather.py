"""Pooling the instances of all requests into runs of the model: sorted by length, never above the largest batch."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ts_mps.batching.grid import Grid, Shape
from ts_mps.batching.instances import Array


@dataclass(frozen=True)
class Span:
    """Consecutive instances of one request: from start (inclusive) to stop (exclusive)."""

    request: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Chunk:
    """The instances of one run, in the order of its rows.

    Args:
        spans: Whose they are.
        rows: How many they are.
        shape: What they are padded to.
        tokens: Their own tokens, without padding; the rows for inputs without a length.
    """

    spans: tuple[Span, ...]
    rows: int
    shape: Shape
    tokens: int

    @property
    def padded_tokens(self) -> int:
        """What the model computes, padding included, in the unit of ``tokens``."""
        return self.shape.rows * max(1, self.shape.length)


@dataclass(frozen=True)
class Pool:
    """All instances of a batch.

    Args:
        request: int64 [N], whose each instance is.
        row: int64 [N], which of its request's.
        tokens: int64 [N], its length; zeros for inputs without a length.
        counts: The number of instances of each request.
    """

    request: Array
    row: Array
    tokens: Array
    counts: Mapping[int, int]

    @staticmethod
    def of(requests: Sequence[tuple[int, int, Array | None]]) -> Pool:
        """Pool (request, number of instances, their lengths or None) triples."""
        return Pool(
            np.concatenate([np.full(count, request, np.int64) for request, count, _ in requests]),
            np.concatenate([np.arange(count, dtype=np.int64) for _, count, _ in requests]),
            np.concatenate(
                [np.zeros(count, np.int64) if lengths is None else lengths for _, count, lengths in requests]
            ),
            {request: count for request, count, _ in requests},
        )


def gather(pool: Pool, grid: Grid) -> list[Chunk]:
    """Cut a pool into runs.

    Instances of different buckets are sorted by length, longest first, and equal ones keep their order. Neighbouring
    buckets share runs where padding the shorter ones costs less than one more run, by the grid's costs.

    Args:
        pool: Every length is one that the grid accepts.
        grid: The buckets and limits.
    """
    if not grid.has_length:
        return _cut(pool, np.arange(len(pool.request)), 0, grid)
    shortest, longest = np.searchsorted(grid.lengths, (pool.tokens.min(), pool.tokens.max()))
    if shortest == longest:
        return _cut(pool, np.arange(len(pool.request)), grid.lengths[longest], grid)
    order = np.argsort(-pool.tokens, kind="stable")
    buckets = np.asarray(grid.lengths)[np.searchsorted(grid.lengths, pool.tokens[order])]
    starts = np.flatnonzero(np.diff(buckets, prepend=-1))
    ends = [*starts[1:], len(order)]
    chunks: list[Chunk] = []
    for first, last in _merge(
        [int(end - start) for start, end in zip(starts, ends, strict=True)], buckets[starts], grid
    ):
        chunks += _cut(pool, order[starts[first] : ends[last]], int(buckets[starts[first]]), grid)
    return chunks


def regather(pool: Pool, chunk: Chunk, grid: Grid) -> list[Chunk]:
    """The instances of a chunk in smaller runs: after out of memory, when the grid's limits have shrunk."""
    return _cut(pool, _members(chunk, pool), chunk.shape.length, grid)


def halve(pool: Pool, chunk: Chunk, grid: Grid) -> tuple[Chunk, Chunk]:
    """The two halves of a chunk of at least two instances."""
    members = _members(chunk, pool)
    half = len(members) // 2
    length = chunk.shape.length
    return _chunk(pool, members[:half], length, grid), _chunk(pool, members[half:], length, grid)


def without(pool: Pool, chunk: Chunk, requests: Collection[int], grid: Grid) -> Chunk | None:
    """A chunk without the instances of some requests; None if nothing is left."""
    if not requests:
        return chunk
    members = _members(chunk, pool)
    kept = members[~np.isin(pool.request[members], list(requests))]
    if len(kept) == len(members):
        return chunk
    return _chunk(pool, kept, chunk.shape.length, grid) if len(kept) else None


def _merge(counts: list[int], lengths: Array, grid: Grid) -> list[tuple[int, int]]:
    """Which neighbouring buckets to run together: the partition of least cost, as (first, last) index pairs."""
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the first n buckets, and where the last group of them begins
    for end in range(1, len(counts) + 1):
        options = (
            (best[begin][0] + grid.split(sum(counts[begin:end]), int(lengths[begin]))[0], begin) for begin in range(end)
        )
        best.append(min(options))
    groups: list[tuple[int, int]] = []
    end = len(counts)
    while end:
        begin = best[end][1]
        groups.append((begin, end - 1))
        end = begin
    return groups[::-1]


def _cut(pool: Pool, members: Array, length: int, grid: Grid) -> list[Chunk]:
    chunks, start = [], 0
    for count in grid.split(len(members), length)[1]:
        chunks.append(_chunk(pool, members[start : start + count], length, grid))
        start += count
    return chunks


def _chunk(pool: Pool, members: Array, length: int, grid: Grid) -> Chunk:
    requests, rows = pool.request[members], pool.row[members]
    breaks = np.flatnonzero((np.diff(requests) != 0) | (np.diff(rows) != 1)) + 1
    edges = [0, *breaks.tolist(), len(members)]
    spans = tuple(
        Span(int(requests[start]), int(rows[start]), int(rows[stop - 1]) + 1)
        for start, stop in itertools.pairwise(edges)
    )
    tokens = pool.tokens[members]
    full = not length or bool((tokens == length).all())
    own = int(tokens.sum()) if length else len(members)
    return Chunk(spans, len(members), Shape(grid.rows(len(members), length), length, full), own)


def _members(chunk: Chunk, pool: Pool) -> Array:
    """The chunk's instances as indices into the pool, in the order of its rows."""
    offsets = {
        int(request): int(start) for request, start in zip(*np.unique(pool.request, return_index=True), strict=True)
    }
    return np.concatenate([np.arange(offsets[s.request] + s.start, offsets[s.request] + s.stop) for s in chunk.spans])
