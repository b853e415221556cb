"""Runs in flight when something fails: nobody may get another one's results, now or in a later batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ts_mps.batching.batch import Batch
from ts_mps.batching.cuda_runner import CudaRunner, _Slot
from ts_mps.batching.errors import RequestError
from ts_mps.batching.gather import Chunk, Pool
from ts_mps.batching.grid import Grid
from ts_mps.batching.instances import Input
from ts_mps.batching.options import BatchingOptions
from ts_mps.batching.pipeline import Pipeline
from ts_mps.batching.runner import RunCounts
from ts_mps.batching.staging import HostBlock

VALUES = [1.0, 2.0, 3.0, 13.0, 5.0, 6.0, 7.0, 8.0]


class Event:
    def record(self, stream: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Stream:
    synchronized = 0

    def synchronize(self) -> None:
        self.synchronized += 1


def on_the_host(model, grid: Grid) -> CudaRunner:
    """The GPU's runner without a GPU: everything but the graphs, on the host's memory."""
    runner = CudaRunner.__new__(CudaRunner)
    runner._model, runner._grid = model, grid
    runner._device, runner._dtype = torch.device("cpu"), torch.float32
    runner._graphs, runner._next, runner._stream = {}, 0, Stream()
    runner._device_in = torch.empty(4096, dtype=torch.uint8)
    runner._slots = [_Slot(HostBlock(pinned=False), HostBlock(pinned=False), Event()) for _ in range(2)]
    runner._on_stream = torch.inference_mode
    runner.counts = RunCounts()
    return runner


def filled(chunk: Chunk):
    def fill(arrays):
        arrays["x"][:, 0] = [VALUES[span.request] for span in chunk.spans for _ in range(len(span))]

    return fill


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_launch_that_fails_leaves_the_run_before_it_alone(most: int) -> None:
    def model(batch: Batch) -> torch.Tensor:
        if (batch["x"] == 13).any():
            raise ValueError("bad instance")
        return batch["x"] * 10

    grid = Grid(BatchingOptions(max_instances=most, launch_cost=0), {"x": Input("float32", (1,))}, pad_rows=False)
    pipeline = Pipeline(grid, on_the_host(model, grid), filled, lambda: True)
    outcome = pipeline.run(Pool.of([(index, 1, None) for index in range(len(VALUES))]))
    assert {index: float(found["output"][0, 0]) for index, found in outcome.results.items()} == {
        index: value * 10 for index, value in enumerate(VALUES) if value != 13
    }
    assert list(outcome.errors) == [3]


def test_out_of_memory_is_tried_again_before_it_is_remembered() -> None:
    failures = [1]

    def model(batch: Batch) -> torch.Tensor:
        if failures:
            failures.pop()
            raise torch.cuda.OutOfMemoryError("a neighbour had it for a moment")
        return batch["x"]

    grid = Grid(BatchingOptions(max_instances=8), {"x": Input("float32", (1,))}, pad_rows=False)
    pipeline = Pipeline(grid, on_the_host(model, grid), filled, lambda: True)
    outcome = pipeline.run(Pool.of([(index, 1, None) for index in range(8)]))
    assert (len(outcome.results), outcome.runs, grid.cap(0)) == (8, 1, 8)


def test_a_host_without_memory_does_not_shrink_the_gpus_batches() -> None:
    def model(batch: Batch) -> torch.Tensor:
        if batch.shape.rows > 2:
            raise MemoryError
        return batch["x"]

    grid = Grid(BatchingOptions(max_instances=8), {"x": Input("float32", (1,))}, pad_rows=False)
    pipeline = Pipeline(grid, on_the_host(model, grid), filled, lambda: True)
    assert len(pipeline.run(Pool.of([(index, 1, None) for index in range(8)])).results) == 8
    assert grid.cap(0) == 8


def test_what_ends_the_process_lets_the_runs_in_flight_end_first() -> None:
    def model(batch: Batch) -> torch.Tensor:
        if (batch["x"] == 3).any():
            raise SystemExit(3)
        return batch["x"]

    grid = Grid(BatchingOptions(max_instances=1), {"x": Input("float32", (1,))}, pad_rows=False)
    runner = on_the_host(model, grid)
    with pytest.raises(SystemExit):
        Pipeline(grid, runner, filled, lambda: True).run(Pool.of([(index, 1, None) for index in range(8)]))
    assert runner._stream.synchronized == 1


def test_a_panic_fails_its_request_only() -> None:
    class Panic(BaseException):
        pass

    def model(batch: Batch) -> torch.Tensor:
        if (batch["x"] == 13).any():
            raise Panic("called `Option::unwrap()` on a `None` value")
        return batch["x"]

    grid = Grid(BatchingOptions(max_instances=8), {"x": Input("float32", (1,))}, pad_rows=False)
    outcome = Pipeline(grid, on_the_host(model, grid), filled, lambda: True).run(
        Pool.of([(index, 1, None) for index in range(len(VALUES))])
    )
    assert list(outcome.errors) == [3] and len(outcome.results) == 7
    assert isinstance(outcome.errors[3], RequestError) and outcome.errors[3].status == 500
    assert np.isfinite(outcome.results[0]["output"]).all()
