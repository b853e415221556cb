"""The base of a handler: four small methods, and everything between TorchServe's batch and the GPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ts_mps.batching import respond
from ts_mps.batching.batch import LENGTHS, Batch, Results
from ts_mps.batching.cuda_runner import CudaRunner
from ts_mps.batching.device import choose_device, choose_dtype, leave, leave_after_answering, survives
from ts_mps.batching.errors import DeviceLost, RequestError, requests_fault, where
from ts_mps.batching.gather import Chunk, Pool
from ts_mps.batching.grid import Grid
from ts_mps.batching.host_runner import HostRunner
from ts_mps.batching.instances import Array, Input, Instances
from ts_mps.batching.intake import Intake
from ts_mps.batching.load import compiled, load_model
from ts_mps.batching.metrics import BatchReport, Emitter
from ts_mps.batching.options import BatchingOptions, Strict, read_config
from ts_mps.batching.pipeline import Outcome, Pipeline
from ts_mps.batching.request import Request, Style
from ts_mps.batching.runner import Fill, Runner

_log = logging.getLogger(__name__)


class BatchHandler:
    """A TorchServe handler that makes the most of a batch.

    A subclass declares ``inputs`` and writes :meth:`decode`, :meth:`run` and :meth:`encode`, and :meth:`collate` where
    padding each column is not all there is to do. TorchServe wants exactly one class in a handler's file, so options of
    its own go into a nested class ``Options``.

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

    # -- what a handler writes -------------------------------------------------------------------------------------

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

    # -- what TorchServe calls -------------------------------------------------------------------------------------

    def initialize(self, context: Any) -> None:
        """Load, validate, warm up. Called once by TorchServe before the worker is READY.

        Raises:
            ConfigError: model-config.yaml or the model cannot be used; the load stops.
        """
        properties = context.system_properties
        self._manifest: Mapping[str, Any] = context.manifest or {}
        self.batching, self.options = read_config(context.model_yaml_config, self.Options)
        self.device = choose_device(properties.get("gpu_id"))
        self.dtype = choose_dtype(self.batching.dtype)
        self.model = self.load(Path(properties["model_dir"])).to(self.device, self.dtype)
        self.model.eval()
        self.grid = Grid(self.batching, self.inputs, pad_rows=self._pads_rows())
        runner = self.make_runner(self.grid)
        began = time.monotonic()
        runner.warm_up()
        _log.info("Warmed up in %.1f s.", time.monotonic() - began)
        self._runner = runner
        self._pipeline = Pipeline(self.grid, runner, self._filler, lambda: survives(self.device))
        self._name = str(context.model_name)
        self._version = str(self._manifest.get("model", {}).get("modelVersion", ""))
        self._emitter = Emitter(self._name)
        threads = self.batching.decode_threads or (torch.get_num_threads() if self.parallel_decode else 1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads > 1 else None
        self._answered = time.perf_counter()
        self._lost = False

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch. Called by TorchServe with one dict for each request.

        Returns:
            One body for each request; status and content type are set in the context.
        """
        if self._lost:
            leave()
        began = time.perf_counter()
        most = self.batching.max_request_instances
        requests = [Request(fields, context.get_all_request_header(index), most) for index, fields in enumerate(data)]
        errors: dict[int, RequestError] = {}
        instances = self._intake().take(requests, errors)
        decoded = time.perf_counter()
        outcome = self._run(instances, errors)
        ran = time.perf_counter()
        answers = [self._answer(index, request, outcome, errors, context) for index, request in enumerate(requests)]
        counts = self._runner.counts
        idle, self._answered = began - self._answered, time.perf_counter()
        self._emitter.emit(
            BatchReport(
                requests=len(data),
                instances=sum(len(one) for one in instances.values()),
                runs=outcome.runs,
                tokens=outcome.tokens,
                padded_tokens=outcome.padded_tokens,
                graph_hits=counts.graph_hits,
                graph_misses=counts.graph_misses,
                isolated_errors=len(errors),
                idle_s=idle,
                decode_s=decoded - began,
                run_s=ran - decoded,
                encode_s=self._answered - ran,
            )
        )
        counts.graph_hits = counts.graph_misses = 0
        return answers

    # -- stages ----------------------------------------------------------------------------------------------------

    def _intake(self) -> Intake:
        return Intake(
            decode=self.decode,
            prepare=None if type(self).prepare is BatchHandler.prepare else self.prepare,
            inputs=self.inputs,
            checks_columns=type(self).collate is BatchHandler.collate,
            grid=self.grid,
            threads=self._threads,
        )

    def _run(self, instances: dict[int, Instances], errors: dict[int, RequestError]) -> Outcome:
        if not instances:
            return Outcome()
        self._instances = instances
        pool = Pool.of([(index, len(one), one.lengths) for index, one in instances.items()])
        try:
            outcome = self._pipeline.run(pool)
        except DeviceLost as error:
            # On one line, or TorchServe might read what a client sent as a line of its own.
            _log.error("The GPU was lost: %s", " ".join(str(error).split())[:300])
            self._lost = True
            leave_after_answering()
            for index in instances:
                errors[index] = RequestError("The GPU failed and this worker is being replaced; send it again.", 503)
            return Outcome()
        errors.update(outcome.errors)
        return outcome

    def _filler(self, chunk: Chunk) -> Fill:
        parts = [self._instances[span.request].part(span.start, span.stop) for span in chunk.spans]

        def fill(arrays: Mapping[str, Array]) -> None:
            if not chunk.shape.full:
                lengths = arrays[LENGTHS]
                # Rows beyond the instances get one token, as a row with everything masked would compute NaN.
                lengths[chunk.rows :] = 1
                np.concatenate([part.lengths for part in parts if part.lengths is not None], out=lengths[: chunk.rows])
            self.collate(parts, arrays)

        return fill

    def _answer(
        self, index: int, request: Request, outcome: Outcome, errors: dict[int, RequestError], context: Any
    ) -> bytes:
        if index not in errors:
            try:
                kind, body = self._encode(outcome.results[index], request)
            except RequestError as error:
                errors[index] = error
            except requests_fault() as error:
                _log.warning("A result could not be encoded: %s", where(error))
                errors[index] = RequestError(f"The result could not be encoded: {type(error).__name__}: {error}", 500)
            else:
                context.set_response_content_type(index, kind)
                return body
        status, phrase, body = respond.error(errors[index])
        context.set_response_status(code=status, phrase=phrase, idx=index)
        context.set_response_content_type(index, respond.JSON)
        return body

    def _encode(self, results: Results, request: Request) -> tuple[str, bytes]:
        if self.finite_results:
            respond.check_finite(results, self.batching.dtype)
        kind = respond.wants_tensors(request)
        if kind is not None:
            return kind, respond.tensors(self.outputs(results, request), kind)
        if request.style is Style.V2:
            return respond.JSON, respond.to_json(
                respond.v2(self.outputs(results, request), request, self._name, self._version)
            )
        return respond.JSON, respond.to_json(self.encode_request(results, request))

    # -- loading ---------------------------------------------------------------------------------------------------

    def _pads_rows(self) -> bool:
        return bool(self.batching.compile) or (self.batching.cuda_graphs and self.device.type == "cuda")
