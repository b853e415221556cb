"""The base of a handler: four small methods, and everything between TorchServe's batch and the GPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ts_mps.batching import respond
from ts_mps.batching.batch import LENGTHS, Results
from ts_mps.batching.contract import Contract
from ts_mps.batching.device import choose_device, choose_dtype, leave, leave_after_answering, survives
from ts_mps.batching.errors import DeviceLost, RequestError, requests_fault, where
from ts_mps.batching.gather import Chunk, Pool
from ts_mps.batching.grid import Grid
from ts_mps.batching.instances import Array, Instances
from ts_mps.batching.intake import Intake
from ts_mps.batching.metrics import BatchReport, Emitter
from ts_mps.batching.options import read_config
from ts_mps.batching.pipeline import Outcome, Pipeline
from ts_mps.batching.request import Request, Style
from ts_mps.batching.runner import Fill

_log = logging.getLogger(__name__)


class BatchHandler(Contract):
    """A TorchServe handler that makes the most of a batch.

    A subclass declares ``inputs`` and writes :meth:`decode`, :meth:`run` and :meth:`encode`, and :meth:`collate` where
    padding each column is not all there is to do. TorchServe wants exactly one class in a handler's file, so options of
    its own go into a nested class ``Options``. What may be declared and replaced stands in
    :class:`ts_mps.batching.contract.Contract`.
    """

    # -- what TorchServe calls -------------------------------------------------------------------------------------

    def initialize(self, context: Any) -> None:
        """Load, validate, warm up. Called once by TorchServe before the worker is READY.

        Raises:
            ConfigError: model-config.yaml or the model cannot be used; the load stops.
        """
        properties = context.system_properties
        self._manifest = context.manifest or {}
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
        outcome = self._run(instances, errors, context)
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

    def _run(self, instances: dict[int, Instances], errors: dict[int, RequestError], context: Any) -> Outcome:
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
            # A worker of ts-mps says what it knows better than a handler, and leaves with this batch's answer.
            told = getattr(context, "device_lost", None)
            told(error) if told is not None else leave_after_answering()
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
