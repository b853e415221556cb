"""What every runner of chunks does, whatever it runs them on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ts_mps.batching.batch import Results
from ts_mps.batching.gather import Chunk
from ts_mps.batching.grid import Shape
from ts_mps.batching.instances import Array

#: Writes a chunk's instances into the host arrays of its shape.
Fill = Callable[[Mapping[str, Array]], None]

#: Runs in flight: while the device computes one, the host fills the next.
IN_FLIGHT = 2


@dataclass
class RunCounts:
    """How runs were made since the counts were last taken."""

    graph_hits: int = 0
    graph_misses: int = 0


class Pending(Protocol):
    """A run that was started."""

    def wait(self) -> Results:
        """Its results, once the device is done; they may be kept."""


class Runner(Protocol):
    """Runs chunks. At most IN_FLIGHT runs are started before the first is waited for."""

    counts: RunCounts

    def warm_up(self) -> None:
        """Run every shape once, and capture what can be captured."""

    def launch(self, chunk: Chunk, fill: Fill) -> Pending:
        """Start a run; errors of the host come here, errors of the device may come with ``wait``."""

    def reset(self) -> None:
        """Forget the runs that were started and that nobody will wait for."""


def synthetic(shape: Shape) -> Fill:
    """Instances for a warm-up: zeros, with one token each where the shape is padded."""

    def fill(arrays: Mapping[str, Array]) -> None:
        for array in arrays.values():
            array[...] = 0
        if not shape.full:
            lengths = list(arrays.values())[-1]
            lengths[...] = 1

    return fill
