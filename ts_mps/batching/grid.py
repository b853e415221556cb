"""The shapes that batches are padded to: pure arithmetic over the options."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ts_mps.batching.errors import ConfigError, RequestError
from ts_mps.batching.instances import Input
from ts_mps.batching.options import BatchingOptions


@dataclass(frozen=True, order=True)
class Shape:
    """What one run of the model is padded to.

    Args:
        rows: Instances, padding included.
        length: Tokens of each, padding included; 0 if the inputs have no length.
        full: Nothing is padded along the length, so no mask is needed.
    """

    rows: int
    length: int = 0
    full: bool = True


class Grid:
    """Which shapes there are, and how many instances of each length fit into one run.

    Args:
        options: The section ``batching``.
        inputs: The model's inputs by name.
        pad_rows: Whether batches are padded to fixed numbers of rows (graphs, compilation).

    Raises:
        ConfigError: One instance alone is larger than max_bytes.
    """

    def __init__(self, options: BatchingOptions, inputs: Mapping[str, Input], *, pad_rows: bool) -> None:
        self.inputs = dict(inputs)
        self.pad_rows = pad_rows
        self.launch_cost = options.launch_cost
        self.has_length = any(one.has_length for one in inputs.values())
        self.lengths = tuple(sorted(set(options.lengths))) if self.has_length else (0,)
        self._caps = {length: self._cap(options, length) for length in self.lengths}
        steps = options.rows or tuple(2**power for power in range(options.max_instances.bit_length()))
        self._steps = tuple(sorted(set(steps)))

    def _cap(self, options: BatchingOptions, length: int) -> int:
        cap = options.max_instances
        if options.max_tokens is not None and length:
            cap = min(cap, options.max_tokens // length)
        if options.max_bytes is not None:
            cap = min(cap, options.max_bytes // self.bytes_per_row(length))
        if cap < 1:
            size = self.bytes_per_row(length)
            raise ConfigError(f"batching.max_bytes ({options.max_bytes}) is less than one instance takes ({size}).")
        return cap

    def bytes_per_row(self, length: int) -> int:
        """Bytes of input of one instance padded to ``length``."""
        sizes = (np.dtype(one.dtype).itemsize * int(np.prod(one.shape_at(length))) for one in self.inputs.values())
        return max(1, sum(sizes))

    @property
    def longest(self) -> int:
        """The longest instance that is accepted; 0 if the inputs have no length."""
        return self.lengths[-1]

    def length(self, tokens: int) -> int:
        """The padded length of an instance.

        Raises:
            RequestError: It is longer than the longest (413), or empty.
        """
        if not self.has_length:
            return 0
        if tokens > self.longest:
            raise RequestError(f"An instance has {tokens} tokens, and the longest served here has {self.longest}.", 413)
        if tokens < 1:
            raise RequestError("An instance is empty.")
        return self.lengths[bisect.bisect_left(self.lengths, tokens)]

    def cap(self, length: int) -> int:
        """Most instances of this padded length in one run."""
        return self._caps[length]

    def rows(self, count: int, length: int) -> int:
        """To how many rows a run of ``count`` instances is padded."""
        if not self.pad_rows:
            return count
        # A chunk made before the limit shrank may be above it; it keeps a shape of the grid.
        return next((step for step in (*self.steps(length), *self._steps) if step >= count), count)

    def steps(self, length: int) -> tuple[int, ...]:
        """The numbers of rows that runs of this length are padded to, ascending; the last one is the cap."""
        cap = self._caps[length]
        return (*(step for step in self._steps if step < cap), cap)

    def shapes(self) -> list[Shape]:
        """Every shape, the largest first, so that graphs that share memory reserve it once."""
        found = []
        for length in self.lengths:
            steps = self.steps(length) if self.pad_rows else (self._caps[length],)
            for rows in steps:
                found.append(Shape(rows, length))
                if length:
                    found.append(Shape(rows, length, full=False))
        return sorted(found, key=lambda shape: (shape.rows * max(1, shape.length), shape), reverse=True)

    def shrink(self, rows: int, length: int) -> bool:
        """Remember that ``rows`` rows of this length did not fit into memory; nor will as many longer ones.

        Returns:
            False if one row is already the most, so that nothing is left to shrink.
        """
        if rows <= 1:
            return False
        smaller = max((step for step in self._steps if step < rows), default=1) if self.pad_rows else rows // 2
        for longer in self.lengths:
            if longer >= length:
                self._caps[longer] = min(self._caps[longer], smaller)
        self.split.cache_clear()
        return True

    @functools.lru_cache(maxsize=4096)  # noqa: B019  # one grid lives as long as its worker
    def split(self, count: int, length: int) -> tuple[int, tuple[int, ...]]:
        """The cheapest way to run ``count`` instances padded to ``length``.

        The cost of a run is launch_cost + rows x length (x 1 without a length): padded rows are computed, too.

        Returns:
            The cost, and the number of instances of each run.
        """
        cap = self.cap(length)
        unit = max(1, length)
        whole = max(0, count // cap - 1)
        steps = self.steps(length) if self.pad_rows else (cap,)
        first = count - whole * cap
        best: dict[int, tuple[int, int]] = {0: (0, 0)}  # by what is left: the cost, and the first run of it
        waiting = [first]
        while waiting:  # no recursion: steps of 1 and 2 below a cap of thousands would be as many levels of it
            left = waiting[-1]
            # A smaller step than the two largest that are filled never saves padding that those would not.
            filled = steps[: bisect.bisect_left(steps, left)][-2:]
            missing = [left - step for step in filled if left - step not in best]
            if missing:
                waiting += missing
                continue
            options = [(best[left - step][0] + self.launch_cost + step * unit, -step) for step in filled]
            if left <= cap:
                options.append((self.launch_cost + self.rows(left, length) * unit, -left))
            if left:
                cost, run = min(options)
                best[left] = cost, -run
            waiting.pop()
        runs = [cap] * whole
        left = first
        while left:
            runs.append(best[left][1])
            left -= runs[-1]
        return whole * (self.launch_cost + cap * unit) + best[first][0], tuple(runs)
