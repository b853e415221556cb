"""Running a pool of instances so that every request gets its own results or its own error."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from ts_mps.batching.batch import Results
from ts_mps.batching.errors import DeviceLost, RequestError, requests_fault
from ts_mps.batching.gather import Chunk, Pool, gather, halve, regather, without
from ts_mps.batching.grid import Grid
from ts_mps.batching.runner import IN_FLIGHT, Fill, Pending, Runner
from ts_mps.batching.warming import give_back

_log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What became of a pool.

    Args:
        results: By request, its results [n, ...] in the order of its instances.
        errors: By request, what its client is told; a request is in one of the two.
        runs: Runs of the model that gave results.
        tokens: Tokens in them (instances, for inputs without a length).
        padded_tokens: The same with padding.
    """

    results: dict[int, Results] = field(default_factory=dict)
    errors: dict[int, RequestError] = field(default_factory=dict)
    runs: int = 0
    tokens: int = 0
    padded_tokens: int = 0


class Pipeline:
    """Gathers, runs, isolates what fails, scatters.

    Args:
        grid: The shapes and limits; its limits shrink after out of memory.
        runner: Runs chunks.
        fill: Makes the function that writes a chunk's instances into host arrays.
        survives: Whether the device can still be used after an error.
    """

    def __init__(self, grid: Grid, runner: Runner, fill: Callable[[Chunk], Fill], survives: Callable[[], bool]) -> None:
        self._grid = grid
        self._runner = runner
        self._fill = fill
        self._survives = survives

    def run(self, pool: Pool) -> Outcome:
        """Run every instance of a pool.

        Raises:
            DeviceLost: The device cannot be used any more; nothing was retried after that.
        """
        try:
            return self._run(pool)
        except DeviceLost:
            raise
        except BaseException:
            self._runner.reset()
            raise

    def _run(self, pool: Pool) -> Outcome:
        outcome = Outcome()
        tried: set[Chunk] = set()
        waiting = deque(gather(pool, self._grid))
        flying: deque[tuple[Chunk, Pending]] = deque()
        while waiting or flying:
            starts = bool(waiting) and len(flying) < IN_FLIGHT
            chunk, pending = (waiting.popleft(), None) if starts else flying.popleft()
            try:
                if pending is not None:
                    _scatter(chunk, pending.wait(), pool, outcome)
                elif chunk.shape.rows > self._grid.cap(chunk.shape.length):
                    # Cut before memory ran out.
                    waiting.extendleft(reversed(regather(pool, chunk, self._grid)))
                elif left := without(pool, chunk, outcome.errors, self._grid):
                    chunk = left
                    flying.append((chunk, self._runner.launch(chunk, self._fill(chunk))))
            except requests_fault() as error:
                waiting.extendleft(reversed(self._again(pool, chunk, error, outcome, tried)))
        for request in outcome.errors:
            outcome.results.pop(request, None)
        return outcome

    def _again(
        self, pool: Pool, chunk: Chunk, error: BaseException, outcome: Outcome, tried: set[Chunk]
    ) -> list[Chunk]:
        """What to run in place of a chunk that failed; a single instance that failed fails its request."""
        if not self._survives():
            raise DeviceLost(f"{type(error).__name__}: {error}") from error
        if isinstance(error, torch.cuda.OutOfMemoryError):
            # Other processes use this GPU's memory too, and torch keeps blocks of sizes that nobody needs.
            give_back(error)
            if chunk not in tried:
                tried.add(chunk)
                return [chunk]
            if self._grid.shrink(chunk.shape.rows, chunk.shape.length):
                _log.warning(
                    "Out of memory in a batch of %d x %d; batches of that length now have at most %d instances.",
                    chunk.shape.rows,
                    chunk.shape.length,
                    self._grid.cap(chunk.shape.length),
                )
                return regather(pool, chunk, self._grid)
            span = chunk.spans[0]
            outcome.errors[span.request] = RequestError("There is not enough memory for even one instance.", 503)
            return []
        if chunk.rows > 1:
            return list(halve(pool, chunk, self._grid))
        span = chunk.spans[0]
        if isinstance(error, MemoryError):
            outcome.errors[span.request] = RequestError("This server is out of memory.", 503)
            return []
        # No words of the client's in the log: TorchServe reads commands from a worker's output.
        _log.warning("The model failed on one instance, which was isolated: %s", type(error).__name__)
        outcome.errors[span.request] = (
            error
            if isinstance(error, RequestError)
            else RequestError(f"The model failed on instance {span.start}: {type(error).__name__}: {error}", 500)
        )
        return []


def _scatter(chunk: Chunk, results: Results, pool: Pool, outcome: Outcome) -> None:
    row = 0
    for span in chunk.spans:
        count = pool.counts[span.request]
        mine = {name: array[row : row + len(span)] for name, array in results.items()}
        row += len(span)
        if len(span) == count:
            outcome.results[span.request] = mine
            continue
        whole = outcome.results.get(span.request)
        if whole is None:
            whole = {name: np.empty((count, *part.shape[1:]), part.dtype) for name, part in mine.items()}
            outcome.results[span.request] = whole
        for name, part in mine.items():
            whole[name][span.start : span.stop] = part
    outcome.runs += 1
    outcome.tokens += chunk.tokens
    outcome.padded_tokens += chunk.padded_tokens
