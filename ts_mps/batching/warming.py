"""Warming up on a GPU: what does not fit into its memory is given back, and lowers the grid's limits."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sized
from typing import TypeVar

import torch

from ts_mps.batching.grid import Grid

_log = logging.getLogger(__name__)

_Made = TypeVar("_Made")


def fit(grid: Grid, what: object, rows: int, length: int, work: Callable[[], _Made]) -> _Made | None:
    """Do some work for ``rows`` rows of a length, unless the grid's limit is below that already.

    Where memory runs out, the limit is lowered for that length and all longer ones.

    Args:
        grid: The shapes and limits.
        what: How the log names the work.
        rows: Of the work.
        length: The shortest padded length that needs it.
        work: What may run out of memory.

    Returns:
        What it returned; None if it was not done.

    Raises:
        torch.cuda.OutOfMemoryError: Not even one row fits.
    """
    if rows > grid.cap(length):
        return None
    try:
        return work()
    except torch.cuda.OutOfMemoryError as error:
        if not grid.shrink(rows, length):
            raise
        give_back(error)
        batches = f"batches of length {length} and longer" if length else "batches"
        cap = grid.cap(length)
        _log.warning("%s does not fit into the GPU's memory; %s now have at most %d instances.", what, batches, cap)
        return None


def give_back(error: BaseException) -> None:
    """Give the memory of work that failed back to the device: the error's traceback holds the tensors of its frames."""
    traceback.clear_frames(error.__traceback__)
    torch.cuda.empty_cache()


@contextlib.contextmanager
def capturing(graphs: Sized, device: torch.device) -> Iterator[None]:
    """Capture graphs inside; the device is waited for, and the log says how many there are now."""
    began = time.monotonic()
    yield
    torch.cuda.synchronize(device)
    _log.info("Captured %d CUDA graphs in %.1f s.", len(graphs), time.monotonic() - began)
