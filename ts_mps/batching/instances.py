"""Instances: what a model answers one by one, kept in columns so that thousands of them cost no Python objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

#: Stands in an input's shape for the length that instances are padded to.
LENGTH: Final = "length"


@dataclass(frozen=True)
class Input:
    """One tensor that the model takes, declared so that it can be staged, captured and warmed up.

    Args:
        dtype: numpy's name of the dtype on the host: ``int64``, ``float32``, ``uint8``, ... Floating inputs reach the
            model in the dtype that it computes in.
        shape: The shape of one instance; LENGTH, only as its first entry, stands for the padded length.
        pad: What fills the padding.
    """

    dtype: str
    shape: tuple[int | str, ...] = ()
    pad: float = 0

    @property
    def has_length(self) -> bool:
        """Whether instances of different length are padded along the first axis."""
        return bool(self.shape) and self.shape[0] == LENGTH

    def shape_at(self, length: int) -> tuple[int, ...]:
        """The shape of one instance padded to ``length``."""
        return tuple(length if size == LENGTH else int(size) for size in self.shape)


class Instances:
    """The instances of one request, or some of them.

    A column is an array [n, ...], or a list of n things: arrays of different length for an input with LENGTH, or
    anything else that :meth:`BatchHandler.prepare` or :meth:`BatchHandler.collate` knows how to use.

    Args:
        columns: By name; all have the same number n of instances.
        lengths: int64 [n], the tokens of each. None: taken from the list column of the first input that has a length,
            or the instances have none.

    Raises:
        ValueError: The columns differ in n.
    """

    __slots__ = ("columns", "count", "lengths")

    def __init__(self, columns: Mapping[str, Array | Sequence[Any]], lengths: Array | None = None) -> None:
        counts = {name: len(column) for name, column in columns.items()}
        if lengths is not None:
            counts["lengths"] = len(lengths)
        if len(set(counts.values())) != 1:
            raise ValueError(f"the columns of a request differ in their number of instances: {counts}")
        self.columns = columns
        self.lengths = lengths
        self.count = next(iter(counts.values()))

    def __len__(self) -> int:
        return self.count

    def part(self, start: int, stop: int) -> Instances:
        """Instances start (inclusive) to stop (exclusive), without copying arrays."""
        if start == 0 and stop == self.count:
            return self
        lengths = None if self.lengths is None else self.lengths[start:stop]
        return Instances({name: column[start:stop] for name, column in self.columns.items()}, lengths)
