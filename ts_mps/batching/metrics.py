"""What a batch cost, as TorchServe metrics: one write to the worker's output for each batch."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass, fields
from typing import Any

_log = logging.getLogger("ts_mps.batching.metrics")

_MS = 1e3


@dataclass(frozen=True)
class BatchReport:
    """One batch of requests, from TorchServe's queue to its answers. The fields are the metrics, with their units.

    Counters, of which ``rate()`` gives the mean: a quotient of two of them is an average over any time.

    Args:
        requests: Requests in the batch.
        instances: Instances in them.
        runs: Runs of the model.
        tokens: Tokens run, without padding; instances, for inputs without a length.
        padded_tokens: The same with padding.
        graph_hits: Runs by a captured CUDA graph.
        graph_misses: Runs without one.
        isolated_errors: Requests answered with an error of their own.
        idle_s: From the previous batch's answers to this batch: the worker waited for TorchServe.
        decode_s: Bodies to instances.
        run_s: Gathering, copies, runs, scattering.
        encode_s: Results to answers.
    """

    requests: int
    instances: int
    runs: int
    tokens: int
    padded_tokens: int
    graph_hits: int
    graph_misses: int
    isolated_errors: int
    idle_s: float
    decode_s: float
    run_s: float
    encode_s: float


#: The counters' names as declared in metrics.yaml, in the order of the report's fields.
NAMES = (
    "BatchRequests",
    "BatchInstances",
    "BatchRuns",
    "BatchTokens",
    "BatchPaddedTokens",
    "BatchGraphHits",
    "BatchGraphMisses",
    "BatchIsolatedErrors",
    "BatchIdleTime",
    "BatchDecodeTime",
    "BatchRunTime",
    "BatchEncodeTime",
)

#: The last batch's requests, and the share of padding in its runs.
GAUGES = ("BatchSize", "BatchPadding")


class Emitter:
    """Writes reports as TorchServe 0.12.0's frontend reads them from a worker's output.

    TorchServe's own ``context.metrics`` makes one log record, one host name look-up and one write for each metric,
    0.2 ms for the dozen of a batch; the lines are the same (``ts/metrics/caching_metric.py``, emit_metrics).

    Args:
        model_name: The dimension ModelName.
    """

    def __init__(self, model_name: str) -> None:
        self._dimensions = f"|#ModelName:{model_name},Level:Model|#type:"
        self._host = socket.gethostname()

    def emit(self, report: BatchReport) -> None:
        """Write one report: the counters, and the last batch's size and padding share as gauges."""
        tail = f"|#hostname:{self._host},{int(time.time())}"
        lines = []
        for name, item in zip(NAMES, fields(report), strict=True):
            value: Any = getattr(report, item.name)
            timed = item.name.endswith("_s")
            text = f"ms:{value * _MS:.3f}" if timed else f"count:{value}"
            lines.append(f"[METRICS]{name}.{text}{self._dimensions}COUNTER{tail}")
        padding = 100 * (1 - report.tokens / report.padded_tokens) if report.padded_tokens else 0.0
        gauges = (f"count:{report.requests}", f"percent:{padding:.2f}")
        for name, text in zip(GAUGES, gauges, strict=True):
            lines.append(f"[METRICS]{name}.{text}{self._dimensions}GAUGE{tail}")
        _log.info("%s", "\n".join(lines))
