"""What runs out of memory: its tensors are let go, and what is left to run is tried before it serves."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from ts_mps.batching.batch import LENGTHS
from ts_mps.batching.gather import Chunk, Pool
from ts_mps.batching.generation import WISHES, GenerationRunner
from ts_mps.batching.grid import Grid
from ts_mps.batching.instances import LENGTH, Input
from ts_mps.batching.options import BatchingOptions
from ts_mps.batching.pipeline import Pipeline
from ts_mps.batching.runner import Fill
from ts_mps.batching.sampling import Wish


class Decoder:
    """A language model of which a given number of rows, or a given number of runs, does not fit."""

    positions = None
    outputs = vocabulary = 40
    kv_heads, head_size, layers = 2, 4, 2

    def __init__(self) -> None:
        self.most, self.failures = 1000, 0
        self.rows: list[int] = []
        self.failed: list[weakref.ref[torch.Tensor]] = []
        self.alive: list[int] = []

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, attention: Any) -> torch.Tensor:
        activations = torch.zeros(1000)
        self.alive.append(sum(one() is not None for one in self.failed))
        if self.failures or len(ids) > self.most:
            self.failures = max(0, self.failures - 1)
            self.failed.append(weakref.ref(activations))
            raise torch.cuda.OutOfMemoryError("x")
        self.rows.append(len(ids))
        return torch.ones(len(ids), self.outputs)


def runner(decoder: Decoder, **options: Any) -> tuple[GenerationRunner, Grid]:
    batching = BatchingOptions(max_instances=8, lengths=[8], **options)
    grid = Grid(batching, {"input_ids": Input("int64", (LENGTH,))}, pad_rows="rows" in options)
    return GenerationRunner(
        decoder, grid, torch.device("cpu"), torch.float32, max_new_tokens=4, text_of=str, graphs=False
    ), grid  # fmt: skip


def filler(chunk: Chunk) -> Fill:
    def fill(arrays: Mapping[str, Any]) -> None:
        arrays["input_ids"][...] = 1
        arrays[LENGTHS][:] = 3
        arrays[WISHES][:] = Wish(3)

    return fill


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What lives in a cycle then stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_what_ran_out_of_memory_is_gone_when_it_is_tried_again() -> None:
    decoder = Decoder()
    made, grid = runner(decoder)
    made.warm_up()
    decoder.failures, decoder.alive = 2, []
    pool = Pool.of([(index, 1, np.array([3])) for index in range(8)])
    outcome = Pipeline(grid, made, filler, lambda: True).run(pool)
    assert len(outcome.results) == 8
    assert not outcome.errors
    assert len(decoder.failed) == 2
    assert not any(decoder.alive), "a failed attempt's tensors were alive while another was made"


@pytest.mark.usefixtures("no_collector")
def test_what_ran_out_of_memory_in_the_warm_up_is_gone() -> None:
    decoder = Decoder()
    decoder.most = 4
    made, grid = runner(decoder)
    made.warm_up()
    assert grid.cap(8) == 4
    assert decoder.failed
    assert not any(decoder.alive)


def test_what_a_batch_leaves_that_does_not_fit_is_tried_too() -> None:
    """Of 4 and 8 rows neither fits: what remains is one row, which was not in the list."""
    decoder = Decoder()
    decoder.most = 2
    made, grid = runner(decoder, rows=[4, 8])
    made.warm_up()
    assert grid.cap(8) == 1
    assert set(decoder.rows) == {1}
