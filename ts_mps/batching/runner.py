"""Running chunks on the device: captured CUDA graphs where there is one for the shape, eager otherwise."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ts_mps.batching.batch import Batch, Model, Results, Trailing, named
from ts_mps.batching.gather import Chunk
from ts_mps.batching.grid import Grid, Shape
from ts_mps.batching.instances import Array
from ts_mps.batching.staging import HostBlock, Layout, input_layout

_log = logging.getLogger(__name__)

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


class _Done:
    def __init__(self, results: Results) -> None:
        self._results = results

    def wait(self) -> Results:
        return self._results


class HostRunner:
    """Runs on the CPU: what is filled in is what the model reads.

    Args:
        model: The handler's ``run``.
        grid: The shapes.
        dtype: That floating inputs are converted to.
    """

    def __init__(self, model: Model, grid: Grid, dtype: torch.dtype) -> None:
        self._model = model
        self._grid = grid
        self._dtype = dtype
        self._block = HostBlock(pinned=False)
        self.counts = RunCounts()

    def warm_up(self) -> None:
        """Run every shape once."""
        trailing = Trailing()
        for shape in self._grid.shapes():
            results = self._run(shape, synthetic(shape))
            trailing.check({name: torch.from_numpy(array) for name, array in results.items()}, shape)

    def launch(self, chunk: Chunk, fill: Fill) -> Pending:
        """Run at once."""
        self.counts.graph_misses += 1
        return _Done(self._run(chunk.shape, fill))

    def reset(self) -> None:
        """Nothing is ever in flight."""

    def _run(self, shape: Shape, fill: Fill) -> Results:
        arrays = self._block.arrays(input_layout(self._grid, shape))
        fill(arrays)
        with torch.inference_mode():
            tensors = {name: _computed(torch.from_numpy(array), self._dtype) for name, array in arrays.items()}
            results = named(self._model(Batch(tensors, shape)), shape.rows)
            # A result may be a view of an input, and the block is filled again while it is still being encoded.
            return {name: tensor.numpy().copy() for name, tensor in results.items()}


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
        for shape in self._grid.shapes():
            if shape.rows <= self._grid.cap(shape.length):
                largest_out = max(largest_out, self._first_run(shape))
        while not self._grid.pad_rows and (shrunk := [s for s in self._grid.shapes() if s not in self._ran]):
            # Without fixed numbers of rows only the largest batch is tried, and after it did not fit, a smaller one.
            largest_out = max(largest_out, self._first_run(shrunk[0]))
        for slot in self._slots:
            slot.outputs = HostBlock(largest_out)
        if self._use_graphs:
            self._device_out = torch.empty(largest_out, dtype=torch.uint8, device=self._device)
            began = time.monotonic()
            for shape in self._grid.shapes():
                if shape.rows <= self._grid.cap(shape.length):
                    self._shrinking(shape, functools.partial(self._capture, shape))
            torch.cuda.synchronize(self._device)
            _log.info("Captured %d CUDA graphs in %.1f s.", len(self._graphs), time.monotonic() - began)

    def _first_run(self, shape: Shape) -> int:
        """Run a shape eagerly, as libraries choose their kernels at the first run; the bytes of its results."""
        bytes_out = 0
        self._ran.add(shape)

        def run() -> None:
            nonlocal bytes_out
            layout = input_layout(self._grid, shape)
            self._reserve(layout)
            fill = synthetic(shape)
            with self._on_stream():
                arrays = self._slots[0].inputs.arrays(layout)
                fill(arrays)
                self._copy_in(layout, self._slots[0])
                for _ in range(2):  # cuDNN and cuBLAS settle in the first, the allocator's blocks in the second
                    results = self._results(layout, shape)
                bytes_out = _output_layout(results).nbytes
                self._trailing.check(results, shape)
            self._stream.synchronize()

        self._shrinking(shape, run)
        return bytes_out

    def _shrinking(self, shape: Shape, run: Callable[[], None]) -> None:
        try:
            run()
        except torch.cuda.OutOfMemoryError:
            if not self._grid.shrink(shape.rows, shape.length):
                raise
            torch.cuda.empty_cache()
            _log.warning(
                "A batch of %d x %d does not fit into the GPU's memory; that length now runs at most %d at once.",
                shape.rows,
                shape.length,
                self._grid.cap(shape.length),
            )

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
        views = layout.views(self._device_in)
        batch = Batch({name: _computed(view, self._dtype) for name, view in views.items()}, shape)
        return named(self._model(batch), shape.rows)


class _OnDevice:
    def __init__(self, done: torch.cuda.Event, arrays: Results) -> None:
        self._done = done
        self._arrays = arrays

    def wait(self) -> Results:
        self._done.synchronize()
        return {name: array.copy() for name, array in self._arrays.items()}


def _output_layout(results: Mapping[str, torch.Tensor]) -> Layout:
    return Layout.of({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in results.items()})


def _computed(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
