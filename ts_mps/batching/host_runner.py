"""Running chunks on the CPU."""

from __future__ import annotations

import torch

from ts_mps.batching.batch import Model, Results, Trailing, apply
from ts_mps.batching.gather import Chunk
from ts_mps.batching.grid import Grid, Shape
from ts_mps.batching.runner import Fill, Pending, RunCounts, synthetic
from ts_mps.batching.staging import HostBlock, input_layout


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
            inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
            results = apply(self._model, inputs, shape, self._dtype)
            # A result may be a view of an input, and the block is filled again while it is still being encoded.
            return {name: tensor.numpy().copy() for name, tensor in results.items()}
