"""Running chunks on a GPU: captured CUDA graphs where there is one for the shape, eager otherwise."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from ts_mps.batching.batch import Model, Results, Trailing, apply
from ts_mps.batching.gather import Chunk
from ts_mps.batching.grid import Grid, Shape
from ts_mps.batching.runner import IN_FLIGHT, Fill, Pending, RunCounts, synthetic
from ts_mps.batching.staging import HostBlock, Layout, input_layout
from ts_mps.batching.warming import capturing, fit

_Made = TypeVar("_Made")


@dataclass
class _Slot:
    """What one run in flight needs for itself."""

    inputs: HostBlock
    outputs: HostBlock
    done: torch.cuda.Event


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: Layout
    outputs: Layout


class CudaRunner:
    """Runs on a GPU, on a stream of its own.

    All shapes share one block of device memory for inputs and one for results: runs follow one another on the stream,
    and each one's results are copied out before the next one begins. For the same reason the graphs share one memory
    pool (https://docs.pytorch.org/docs/stable/notes/cuda.html#sharing-memory-across-captures).

    Args:
        model: The handler's ``run``.
        grid: The shapes; its limits shrink where a shape does not fit into memory.
        device: The GPU.
        dtype: That floating inputs are converted to, on the device.
        graphs: Whether to capture.
    """

    def __init__(self, model: Model, grid: Grid, device: torch.device, dtype: torch.dtype, *, graphs: bool) -> None:
        self._model = model
        self._grid = grid
        self._device = device
        self._dtype = dtype
        self._use_graphs = graphs
        self._stream = torch.cuda.Stream(device)
        self._graphs: dict[Shape, _Graph] = {}
        self._ran: set[Shape] = set()
        self._trailing = Trailing()
        self._pool = torch.cuda.graph_pool_handle()
        self._device_in = torch.empty(0, dtype=torch.uint8, device=device)
        self._device_out = torch.empty(0, dtype=torch.uint8, device=device)
        self._slots = [_Slot(HostBlock(), HostBlock(), torch.cuda.Event()) for _ in range(IN_FLIGHT)]
        self._next = 0
        self.counts = RunCounts()

    # -- warm-up ---------------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Run every shape; then capture each one.

        A shape that does not fit into memory lowers the grid's limit for its length and all longer ones.

        Raises:
            torch.cuda.OutOfMemoryError: Not even one instance fits.
        """
        torch.cuda.synchronize(self._device)  # weights and buffers were written on another stream
        largest_in = max(input_layout(self._grid, shape).nbytes for shape in self._grid.shapes())
        for slot in self._slots:
            slot.inputs = HostBlock(largest_in)
        largest_out = 0
        while shapes := [shape for shape in self._grid.shapes() if shape not in self._ran]:
            # A batch that does not fit may leave one in its place that was not a shape before.
            for shape in shapes:
                self._ran.add(shape)
                largest_out = max(largest_out, self._fit(shape, self._first_run) or 0)
        for slot in self._slots:
            slot.outputs = HostBlock(largest_out)
        if self._use_graphs:
            self._device_out = torch.empty(largest_out, dtype=torch.uint8, device=self._device)
            with capturing(self._graphs, self._device):
                for shape in self._grid.shapes():
                    self._fit(shape, self._capture)

    def _fit(self, shape: Shape, work: Callable[[Shape], _Made]) -> _Made | None:
        what = f"A batch of {shape.rows} x {shape.length}" if shape.length else f"A batch of {shape.rows}"
        return fit(self._grid, what, shape.rows, shape.length, functools.partial(work, shape))

    def _first_run(self, shape: Shape) -> int:
        """Run a shape eagerly, as libraries choose their kernels at the first run; the bytes of its results."""
        layout = input_layout(self._grid, shape)
        self._reserve(layout)
        with self._on_stream():
            synthetic(shape)(self._slots[0].inputs.arrays(layout))
            self._copy_in(layout, self._slots[0])
            for _ in range(2):  # cuDNN and cuBLAS settle in the first, the allocator's blocks in the second
                results = self._results(layout, shape)
            self._trailing.check(results, shape)
        self._stream.synchronize()
        return _output_layout(results).nbytes

    def _capture(self, shape: Shape) -> None:
        layout = input_layout(self._grid, shape)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            results = self._results(layout, shape)
            outputs = _output_layout(results)
            for name, view in outputs.views(self._device_out).items():
                view.copy_(results[name])
        self._graphs[shape] = _Graph(graph, layout, outputs)

    # -- serving ---------------------------------------------------------------------------------------------------

    def launch(self, chunk: Chunk, fill: Fill) -> Pending:
        """Fill pinned memory, and queue one copy in, the run, and one copy out."""
        slot = self._slots[self._next]
        shape = chunk.shape
        captured = self._graphs.get(shape)
        layout = captured.inputs if captured else input_layout(self._grid, shape)
        fill(slot.inputs.arrays(layout))
        with self._on_stream():
            if captured:
                self.counts.graph_hits += 1
                self._copy_in(layout, slot)
                captured.graph.replay()
                outputs, packed = captured.outputs, self._device_out
            else:
                self.counts.graph_misses += 1
                self._reserve(layout)
                self._copy_in(layout, slot)
                results = self._results(layout, shape)
                outputs = _output_layout(results)
                packed = torch.empty(outputs.nbytes, dtype=torch.uint8, device=self._device)
                for name, view in outputs.views(packed).items():
                    view.copy_(results[name])
            arrays = slot.outputs.arrays(outputs)
            slot.outputs.tensor[: outputs.nbytes].copy_(packed[: outputs.nbytes], non_blocking=True)
            slot.done.record(self._stream)
        # Only now: after a launch that failed this slot is the free one, and the other still holds the run before.
        self._next = (self._next + 1) % IN_FLIGHT
        return _OnDevice(slot.done, arrays)

    def reset(self) -> None:
        """Let runs that nobody waits for any more come to their end."""
        self._stream.synchronize()

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            yield

    def _reserve(self, layout: Layout) -> None:
        if layout.nbytes > self._device_in.numel():
            # Captured graphs read the block that they were captured with, and all first runs come before the captures.
            # Later only a shape outside the grid could want more.
            if self._graphs:
                raise RuntimeError(f"a batch of {layout.nbytes} bytes is larger than any that was warmed up")
            self._device_in = torch.empty(layout.nbytes, dtype=torch.uint8, device=self._device)

    def _copy_in(self, layout: Layout, slot: _Slot) -> None:
        self._device_in[: layout.nbytes].copy_(slot.inputs.tensor[: layout.nbytes], non_blocking=True)

    def _results(self, layout: Layout, shape: Shape) -> dict[str, torch.Tensor]:
        return apply(self._model, layout.views(self._device_in), shape, self._dtype)


class _OnDevice:
    def __init__(self, done: torch.cuda.Event, arrays: Results) -> None:
        self._done = done
        self._arrays = arrays

    def wait(self) -> Results:
        self._done.synchronize()
        return {name: array.copy() for name, array in self._arrays.items()}


def _output_layout(results: Mapping[str, torch.Tensor]) -> Layout:
    return Layout.of({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in results.items()})
