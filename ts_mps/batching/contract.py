"""What a handler declares and writes: the part of ``ts_mps.batching.BatchHandler`` that is meant to be replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from ts_mps.batching import respond
from ts_mps.batching.batch import Batch, Results
from ts_mps.batching.cuda_runner import CudaRunner
from ts_mps.batching.grid import Grid
from ts_mps.batching.host_runner import HostRunner
from ts_mps.batching.instances import Array, Input, Instances
from ts_mps.batching.load import compiled, load_model
from ts_mps.batching.options import BatchingOptions, Strict
from ts_mps.batching.request import Request
from ts_mps.batching.runner import Runner


class Contract:
    """What may be declared and replaced. It is set up by ``initialize`` before any of it is called.

    Attributes:
        inputs: The model's inputs by name. May be set in :meth:`load` where it depends on the model.
        Options: What the section ``handler`` of model-config.yaml may hold.
        parallel_decode: Whether decoding gains from threads, as libraries do that release the interpreter's lock.
        finite_results: Whether a result that is NaN or infinite is an error; JSON has neither.
        options: The section ``handler``, validated.
        batching: The section ``batching``, validated.
        model: What :meth:`load` returned, in eval mode, on the device, in the dtype of the options.
        device: The worker's device.
        dtype: What the model computes in.
    """

    inputs: Mapping[str, Input]
    parallel_decode: ClassVar[bool] = False
    finite_results: ClassVar[bool] = True

    class Options(Strict):
        """No options."""

    options: Any
    batching: BatchingOptions
    model: torch.nn.Module
    device: torch.device
    dtype: torch.dtype
    _manifest: Mapping[str, Any]

    def load(self, folder: Path) -> torch.nn.Module:
        """Load the model on the CPU.

        Args:
            folder: Where TorchServe unpacked the archive.

        Returns:
            The model; it is moved to the device and the dtype afterwards.

        Raises:
            ConfigError: It cannot be loaded.
        """
        return load_model(folder, self._manifest)

    def decode(self, request: Request) -> Instances:
        """Decode one request.

        Returns:
            At least one instance, with a column for each input.

        Raises:
            RequestError: It is malformed; its client gets the sentence and the status, the others their answers.
        """
        raise NotImplementedError

    def prepare(self, requests: list[Instances]) -> list[Instances]:
        """Work that pays off over all requests at once, as batched tokenisation does.

        Args:
            requests: What was decoded.

        Returns:
            The same number of entries, in the same order. If it raises, it is called again for each request alone.
        """
        return requests

    def collate(self, parts: Sequence[Instances], arrays: Mapping[str, Array]) -> None:
        """Write the instances of one run into the host memory from which they are copied to the device.

        Args:
            parts: The instances, in the order of the rows.
            arrays: For each input [rows, ...] at its padded shape. Everything must be written, padding too: the memory
                is used again and again.
        """
        for name, one in self.inputs.items():
            array, row = arrays[name], 0
            if one.has_length:
                array.fill(one.pad)
                for part in parts:
                    for value in part.columns[name]:
                        array[row, : len(value)] = value
                        row += 1
            else:
                for part in parts:
                    array[row : row + len(part)] = part.columns[name]
                    row += len(part)
                array[row:] = one.pad

    def run(self, batch: Batch) -> torch.Tensor | Mapping[str, torch.Tensor]:
        """Run the model.

        It is captured into CUDA graphs: it must compute on the device alone, and always the same for one shape.

        Returns:
            [rows, ...], or several of them by name.
        """
        raise NotImplementedError

    def encode(self, result: Mapping[str, Any], request: Request) -> Any:
        """The answer for one instance.

        Args:
            result: By name, the instance's part of what :meth:`run` returned: arrays, or numbers if it has one each.
            request: The request that it came with.

        Returns:
            Anything that JSON can hold.
        """
        raise NotImplementedError

    def encode_request(self, results: Results, request: Request) -> Any:
        """The answer for one request: a list of its instances' answers, or its only one's, unless overridden."""
        count = len(next(iter(results.values())))
        answers = [self.encode({name: array[row] for name, array in results.items()}, request) for row in range(count)]
        return respond.shaped(answers, request)

    def outputs(self, results: Results, request: Request) -> Mapping[str, Any]:
        """What a KServe v2 or binary answer holds: arrays [n, ...] by name, or lists of texts."""
        return results

    def make_runner(self, grid: Grid) -> Runner:
        """The runner; a handler whose model is more than one call replaces it."""
        model = compiled(self.run, self.batching.compile, len(grid.shapes())) if self.batching.compile else self.run
        if self.device.type == "cuda":
            return CudaRunner(model, grid, self.device, self.dtype, graphs=self.batching.cuda_graphs)
        return HostRunner(model, grid, self.dtype)
