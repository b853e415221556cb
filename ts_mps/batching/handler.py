"""The base of a handler: four small methods, and everything between TorchServe's batch and the GPU."""

from __future__ import annotations

import functools
import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from ts_mps.batching import respond
from ts_mps.batching.batch import LENGTHS, Batch, Model, Results
from ts_mps.batching.device import choose_device, choose_dtype, leave, leave_after_answering, survives
from ts_mps.batching.errors import REQUESTS_FAULT, DeviceLost, RequestError, check_fault
from ts_mps.batching.formats import numbers
from ts_mps.batching.gather import Chunk, Pool
from ts_mps.batching.grid import Grid
from ts_mps.batching.instances import Array, Input, Instances
from ts_mps.batching.load import load_model
from ts_mps.batching.metrics import BatchReport, Emitter
from ts_mps.batching.options import BatchingOptions, Strict, read_config
from ts_mps.batching.pipeline import Outcome, Pipeline
from ts_mps.batching.request import Request, Style
from ts_mps.batching.runner import CudaRunner, Fill, HostRunner, Runner

_log = logging.getLogger(__name__)

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

#: What decoding code raises on input that it did not expect; anything else is a fault of the handler.
_CLIENTS_FAULT = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, OSError)


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
        if self.device.type == "cuda":
            return CudaRunner(self._compiled(), grid, self.device, self.dtype, graphs=self.batching.cuda_graphs)
        return HostRunner(self._compiled(), grid, self.dtype)

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
        instances = self._decode_all(requests, errors)
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

    def _decode_all(self, requests: list[Request], errors: dict[int, RequestError]) -> dict[int, Instances]:
        found: dict[int, Instances] = {}
        for index, made in enumerate(self._each(self._decoded, requests)):
            self._keep(index, made, found, errors)
        if type(self).prepare is not BatchHandler.prepare:
            self._prepare(found, errors)
        checked: dict[int, Instances] = {}
        for index, one in found.items():
            self._keep(index, _caught(self._checked, one), checked, errors)
        return checked

    def _decoded(self, request: Request) -> Instances:
        """What decode makes of a request, if it is not more than one request may hold."""
        made = self.decode(request)
        if isinstance(made, Instances):
            request.limit(len(made))
        return made

    def _each(self, make: Callable[[_Given], _Made], given: Sequence[_Given]) -> list[_Made | BaseException]:
        if self._threads is None or len(given) == 1:
            return [_caught(make, one) for one in given]
        return list(self._threads.map(functools.partial(_caught, make), given))

    def _keep(
        self,
        index: int,
        made: object,
        found: dict[int, Instances],
        errors: dict[int, RequestError],
    ) -> None:
        if isinstance(made, Instances):
            found[index] = made
        elif isinstance(made, RequestError):
            errors[index] = made
        elif isinstance(made, MemoryError):
            errors[index] = RequestError("This server is out of memory.", 503)
        elif isinstance(made, _CLIENTS_FAULT):
            _log.warning("A request could not be decoded: %s", _where(made))
            errors[index] = RequestError(f"The request could not be decoded: {type(made).__name__}: {made}", 400)
        elif isinstance(made, BaseException):
            _log.error("A request could not be decoded: %s", _where(made))
            errors[index] = RequestError(f"This server's handler failed on the request: {type(made).__name__}.", 500)
        else:
            _log.error("decode returned %s in place of Instances", type(made).__name__)
            errors[index] = RequestError("This server's handler did not decode the request into instances.", 500)

    def _prepare(self, found: dict[int, Instances], errors: dict[int, RequestError]) -> None:
        indices = list(found)
        try:
            made = self.prepare([found[index] for index in indices]) if indices else []
            found.update(zip(indices, made, strict=True))
        except REQUESTS_FAULT as error:
            check_fault(error)
            for index in indices:
                self._keep(index, _caught(self._prepared, found.pop(index)), found, errors)

    def _prepared(self, alone: Instances) -> Instances:
        made = self.prepare([alone])
        if len(made) != 1:
            raise RequestError(f"prepare returned {len(made)} entries for one request.", 500)
        return made[0]

    def _checked(self, instances: Instances) -> Instances:
        """A request's instances with their lengths, once they are known to be such as can be pooled.

        Raises:
            RequestError: They cannot.
        """
        if not len(instances):
            raise RequestError("The request has no instances.")
        if type(self).collate is BatchHandler.collate:
            columns = {name: _column(name, one, instances.columns.get(name)) for name, one in self.inputs.items()}
            instances.columns = {**instances.columns, **columns}
        if not self.grid.has_length:
            instances.lengths = None
        else:
            if instances.lengths is None:
                name = next(name for name, one in self.inputs.items() if one.has_length)
                instances.lengths = np.fromiter(map(len, instances.columns[name]), np.int64, len(instances))
            self.grid.length(int(instances.lengths.min()))
            self.grid.length(int(instances.lengths.max()))
        return instances

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
            except REQUESTS_FAULT as error:
                check_fault(error)
                _log.warning("A result could not be encoded: %s", _where(error))
                errors[index] = RequestError(f"The result could not be encoded: {type(error).__name__}: {error}", 500)
            else:
                context.set_response_content_type(index, kind)
                return body
        status, phrase, body = respond.error(errors[index])
        context.set_response_status(code=status, phrase=phrase, idx=index)
        context.set_response_content_type(index, respond.JSON)
        return body

    def _encode(self, results: Results, request: Request) -> tuple[str, bytes]:
        for name, array in results.items():
            if self.finite_results and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise RequestError(
                    f"The model's result {name} is not finite (it computes in {self.batching.dtype}).", 500
                )
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

    def _compiled(self) -> Model:
        if not self.batching.compile:
            return self.run
        mode = None if isinstance(self.batching.compile, bool) else self.batching.compile
        # One compilation for each shape; the default limit of 8 would leave the rest eager without a word.
        limits = torch._dynamo.config
        name = "recompile_limit" if hasattr(limits, "recompile_limit") else "cache_size_limit"  # before torch 2.7
        setattr(limits, name, max(getattr(limits, name), 4 * len(self.grid.shapes())))
        compiled: Model = torch.compile(self.run, mode=mode, dynamic=False)
        return compiled


def _caught(make: Callable[[_Given], _Made], given: _Given) -> _Made | BaseException:
    """What ``make`` returns, or the exception that it raised: one request's fault is not its neighbours'."""
    try:
        return make(given)
    except REQUESTS_FAULT as error:
        check_fault(error)
        return error


def _where(error: BaseException) -> str:
    """An error's class and the line that raised it: without its text, which may be a client's."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def _column(name: str, one: Input, column: Array | Sequence[Any] | None) -> Array | list[Array]:
    """A declared input's column, once it is known to be what :meth:`BatchHandler.collate` can copy.

    Raises:
        RequestError: It is not.
    """
    if column is None:
        raise RequestError(f"This server's handler gave no column {name}.", 500)
    if one.has_length and not isinstance(column, np.ndarray):
        return [_array(name, one, value, one.shape[1:], skip=1) for value in column]
    return _array(name, one, column, one.shape[1:] if one.has_length else one.shape, skip=2 if one.has_length else 1)


def _array(name: str, one: Input, value: Any, shape: tuple[int | str, ...], skip: int) -> Array:
    exact = isinstance(value, np.ndarray) and value.dtype == one.dtype
    array: Array = value if exact else numbers(value, one.dtype, name)
    if array.ndim < skip or array.shape[skip:] != shape:
        wanted = ", ".join(["n"] * skip + [str(size) for size in shape])
        raise RequestError(f"{name}: shape [{wanted}] is needed, got {list(array.shape)}.")
    return array
