"""Pooling: whatever the options and the pool, every instance is run once and within the limits."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_mps.batching import LENGTH, BatchingOptions, ConfigError, Input, RequestError
from ts_mps.batching.gather import Chunk, Pool, gather, halve, regather, without
from ts_mps.batching.grid import Grid

TOKENS = {"ids": Input("int64", (LENGTH,)), "kind": Input("uint8")}
FLAT = {"x": Input("float32", (3,))}


@st.composite
def grids(draw: st.DrawFn, has_length: bool | None = None) -> tuple[Grid, BatchingOptions]:
    if has_length is None:
        has_length = draw(st.booleans())
    most = draw(st.integers(1, 70))
    lengths = draw(st.lists(st.integers(1, 200), min_size=1, max_size=6))
    longest = max(lengths)
    options = BatchingOptions(
        max_instances=most,
        lengths=tuple(lengths),
        max_tokens=draw(st.none() | st.integers(longest, longest * most * 2)),
        max_bytes=draw(st.none() | st.integers(longest * 8 + 12, longest * 9 * most * 2 + 12)),
        rows=draw(st.none() | st.lists(st.integers(1, most), min_size=1, max_size=4).map(tuple)),
        launch_cost=draw(st.sampled_from((0, 1, 7, 512, 10**6))),
    )
    return Grid(options, TOKENS if has_length else FLAT, pad_rows=draw(st.booleans())), options


@st.composite
def pools(draw: st.DrawFn, grid: Grid) -> Pool:
    counts = draw(st.lists(st.integers(1, 50), min_size=1, max_size=8))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Request numbers have gaps where neighbours could not be decoded.
    numbers = np.cumsum(random.integers(1, 4, len(counts))).tolist()
    most = draw(st.integers(1, grid.longest)) if grid.has_length else 0
    return Pool.of(
        [
            (number, count, random.integers(1, most + 1, count) if grid.has_length else None)
            for number, count in zip(numbers, counts, strict=True)
        ]
    )


def members(chunks: list[Chunk]) -> list[tuple[int, int]]:
    return [(span.request, row) for chunk in chunks for span in chunk.spans for row in range(span.start, span.stop)]


def everyone(pool: Pool) -> list[tuple[int, int]]:
    return list(zip(pool.request.tolist(), pool.row.tolist(), strict=True))


def check(chunk: Chunk, pool: Pool, grid: Grid, options: BatchingOptions) -> None:
    """A chunk within every limit, padding included, that says of itself what is true."""
    tokens = dict(zip(everyone(pool), pool.tokens.tolist(), strict=True))
    own = [tokens[one] for one in members([chunk])]
    assert chunk.rows == len(own) > 0
    assert chunk.shape.rows >= chunk.rows
    if not grid.pad_rows:
        assert chunk.shape.rows == chunk.rows
    assert chunk.shape.rows <= options.max_instances
    assert chunk.shape.rows * grid.bytes_per_row(chunk.shape.length) <= (options.max_bytes or np.inf)
    if grid.has_length:
        assert chunk.shape.length in options.lengths
        assert chunk.shape.length >= max(own)
        assert chunk.shape.rows * chunk.shape.length <= (options.max_tokens or np.inf)
        assert chunk.shape.full is all(one == chunk.shape.length for one in own)
        assert chunk.tokens == sum(own)
    else:
        assert chunk.shape.length == 0 and chunk.shape.full and chunk.tokens == chunk.rows
    assert chunk.tokens <= chunk.padded_tokens
    assert not grid.pad_rows or chunk.shape in grid.shapes()


@settings(max_examples=150)
@given(st.data())
def test_every_instance_in_one_chunk_within_the_limits(data: st.DataObject) -> None:
    grid, options = data.draw(grids())
    pool = data.draw(pools(grid))
    chunks = gather(pool, grid)
    assert sorted(members(chunks)) == sorted(everyone(pool))
    for chunk in chunks:
        check(chunk, pool, grid, options)
    lengths = [chunk.shape.length for chunk in chunks]
    assert lengths == sorted(lengths, reverse=True)


@settings(max_examples=100)
@given(st.data())
def test_parts_of_a_chunk_keep_its_members(data: st.DataObject) -> None:
    grid, options = data.draw(grids())
    pool = data.draw(pools(grid))
    chunk = data.draw(st.sampled_from(gather(pool, grid)))
    if chunk.rows > 1:
        halves = list(halve(pool, chunk, grid))
        assert members(halves) == members([chunk])  # in order, too
        assert abs(halves[0].rows - halves[1].rows) <= 1
        for half in halves:
            check(half, pool, grid, options)
    gone = data.draw(st.sets(st.sampled_from(list(pool.counts))))
    left = without(pool, chunk, gone, grid)
    kept = [one for one in members([chunk]) if one[0] not in gone]
    assert members([left] if left else []) == kept
    if left is not None:
        check(left, pool, grid, options)
    if grid.shrink(chunk.shape.rows, chunk.shape.length):
        again = regather(pool, chunk, grid)
        assert members(again) == members([chunk])
        for part in again:
            check(part, pool, grid, options)
            assert part.shape.rows < chunk.shape.rows and part.shape.rows <= grid.cap(part.shape.length)


@settings(max_examples=100)
@given(st.data())
def test_a_chunk_from_before_a_shrink_can_still_be_cut(data: st.DataObject) -> None:
    grid, _ = data.draw(grids())
    pool = data.draw(pools(grid))
    chunks = gather(pool, grid)
    first = chunks[0]
    for length in grid.lengths:
        while grid.shrink(grid.cap(length), length):
            pass
    for chunk in chunks:
        if chunk.rows > 1:
            assert members(list(halve(pool, chunk, grid))) == members([chunk])
        left = without(pool, chunk, {first.spans[0].request}, grid)
        assert left is None or left.shape.rows >= left.rows
        assert {part.rows for part in regather(pool, chunk, grid)} == {1}


@settings(max_examples=150)
@given(grids(), st.data())
def test_shrink_lowers_that_and_longer_lengths_only(made: tuple[Grid, BatchingOptions], data: st.DataObject) -> None:
    grid, _ = made
    length = data.draw(st.sampled_from(grid.lengths))
    before = {one: grid.cap(one) for one in grid.lengths}
    count = data.draw(st.integers(1, 300))
    grid.split(count, length)  # remembered, and no longer true afterwards
    rows = data.draw(st.sampled_from(grid.steps(length)))
    shrunk = grid.shrink(rows, length)
    assert shrunk is (rows > 1)
    for one in grid.lengths:
        if one < length or not shrunk:
            assert grid.cap(one) == before[one]
        else:
            assert 1 <= grid.cap(one) <= before[one] and grid.cap(one) < rows
    runs = grid.split(count, length)[1]
    assert sum(runs) == count and max(runs) <= grid.cap(length)
    assert all(shape.rows <= grid.cap(shape.length) for shape in grid.shapes())


def test_shrinking_ends() -> None:
    grid = Grid(BatchingOptions(max_instances=100, rows=(8, 100), lengths=(4, 8)), TOKENS, pad_rows=True)
    seen = []
    while grid.shrink(grid.cap(8), 8):
        seen.append(grid.cap(8))
    assert seen == [8, 1] and grid.cap(4) == 100


def _cost(grid: Grid, runs: tuple[int, ...], length: int) -> int:
    return sum(grid.launch_cost + grid.rows(run, length) * max(1, length) for run in runs)


@settings(max_examples=200)
@given(grids(), st.integers(0, 500), st.data())
def test_split_costs_what_it_says_and_no_more_than_greedy(
    made: tuple[Grid, BatchingOptions], count: int, data: st.DataObject
) -> None:
    grid, _ = made
    length = data.draw(st.sampled_from(grid.lengths))
    cost, runs = grid.split(count, length)
    assert sum(runs) == count and all(runs)
    assert cost == _cost(grid, runs, length)
    cap = grid.cap(length)
    greedy = (cap,) * (count // cap) + ((count % cap,) if count % cap else ())
    assert cost <= _cost(grid, greedy, length)


@pytest.mark.parametrize("rows", [None, (1,), (1, 2), (3, 5), (16,)])
@pytest.mark.parametrize("most", [1, 3, 37, 10_000, 20_000])
@pytest.mark.parametrize("pad_rows", [True, False])
def test_splits_of_many_never_leave_the_stack(rows: tuple[int, ...] | None, most: int, pad_rows: bool) -> None:
    rows = tuple(one for one in rows if one <= most) or None if rows else None
    grid = Grid(BatchingOptions(max_instances=most, rows=rows, launch_cost=1), FLAT, pad_rows=pad_rows)
    for count in (999, 9_999, 19_999, 20_000):
        cost, runs = grid.split(count, 0)
        assert sum(runs) == count and max(runs) <= most and cost == _cost(grid, runs, 0)


@settings(max_examples=100)
@given(grids(has_length=True), st.integers(-5, 300))
def test_length_is_the_smallest_bucket_that_holds(made: tuple[Grid, BatchingOptions], tokens: int) -> None:
    grid, options = made
    if 1 <= tokens <= max(options.lengths):
        assert grid.length(tokens) == min(one for one in options.lengths if one >= tokens)
        return
    with pytest.raises(RequestError) as caught:
        grid.length(tokens)
    assert caught.value.status == (413 if tokens > 0 else 422)


@settings(max_examples=100)
@given(grids())
def test_shapes_are_what_runs_are_padded_to(made: tuple[Grid, BatchingOptions]) -> None:
    grid, _ = made
    shapes = grid.shapes()
    assert max(Counter(shapes).values()) == 1
    sizes = [shape.rows * max(1, shape.length) for shape in shapes]
    assert sizes == sorted(sizes, reverse=True)
    for length, full in itertools.product(grid.lengths, (True, False) if grid.has_length else (True,)):
        mine = {shape.rows for shape in shapes if (shape.length, shape.full) == (length, full)}
        assert max(mine) == grid.cap(length)
        if grid.pad_rows:
            assert {grid.rows(count, length) for count in range(1, grid.cap(length) + 1)} == mine


def test_one_instance_above_max_bytes_is_named() -> None:
    with pytest.raises(ConfigError, match=r"max_bytes \(11\) is less than one instance takes \(12\)"):
        Grid(BatchingOptions(max_bytes=11), FLAT, pad_rows=False)


def test_neighbouring_buckets_share_a_run_only_where_that_is_cheaper() -> None:
    pool = Pool.of([(0, 3, np.asarray([16, 9, 30]))])
    for launch_cost, shapes in ((0, [(1, 32), (2, 16)]), (10_000, [(3, 32)])):
        grid = Grid(BatchingOptions(launch_cost=launch_cost, lengths=(16, 32)), TOKENS, pad_rows=False)
        assert [(chunk.shape.rows, chunk.shape.length) for chunk in gather(pool, grid)] == shapes


def test_equal_lengths_keep_their_order() -> None:
    tokens = np.random.default_rng(1).integers(1, 4, 600)
    pool = Pool.of([(0, 300, tokens[:300]), (2, 300, tokens[300:])])
    grid = Grid(BatchingOptions(lengths=(2, 4), max_instances=64), TOKENS, pad_rows=False)
    own = dict(zip(everyone(pool), tokens.tolist(), strict=True))
    assert members(gather(pool, grid)) == sorted(everyone(pool), key=lambda one: (-own[one], one))
