"""Handlers with batch aggregation: decode one request, run them all, answer each one.

See docs/how-to/write-a-handler.md. Works under ``ts-mps start`` and under plain ``torchserve``; imports no other part
of ts_mps, and touches CUDA only in :meth:`BatchHandler.initialize`.
"""

from ts_mps.batching.batch import OUTPUT, Batch, Results
from ts_mps.batching.content import Part
from ts_mps.batching.errors import ConfigError, RequestError
from ts_mps.batching.formats import JSON, NPY, SAFETENSORS, numbers
from ts_mps.batching.handler import BatchHandler
from ts_mps.batching.instances import LENGTH, Input, Instances
from ts_mps.batching.labels import best_labels
from ts_mps.batching.options import BatchingOptions, Strict
from ts_mps.batching.request import Request, Style

__all__ = [
    "JSON",
    "LENGTH",
    "NPY",
    "OUTPUT",
    "SAFETENSORS",
    "Batch",
    "BatchHandler",
    "BatchingOptions",
    "ConfigError",
    "Input",
    "Instances",
    "Part",
    "Request",
    "RequestError",
    "Results",
    "Strict",
    "Style",
    "best_labels",
    "numbers",
]
