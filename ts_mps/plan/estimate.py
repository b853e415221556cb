"""GPU memory of a worker that nobody measured, from the size of its archive's weight files."""

from __future__ import annotations

from ts_mps.plan.facts import WorkerMemory

#: A CUDA context with torch's kernels, in bytes (measured on an H200, driver 580: 519 MiB with MPS, 526 without).
CONTEXT_BYTES = 520 * 2**20
#: What batches take at least, in bytes: cuBLAS and cuDNN workspaces and the caching allocator's first segments.
LEAST_PEAK_BYTES = 256 * 2**20


def estimate_memory(weight_bytes: int) -> WorkerMemory:
    """Guess what one worker holds: ``520 MiB + weights + max(256 MiB, weights / 2)``.

    Weights are taken to be as large in memory as in the file: a handler that loads float32 files as float16 holds half
    of it, one that captures CUDA graphs or keeps a cache holds more. Half of the weights again for batches is a rule
    of thumb, not a bound: activations grow with the batch and with the input, which the archive does not tell.
    ``ts-mps profile`` measures instead.

    Args:
        weight_bytes: Unpacked size of the archive's weight files.
    """
    return WorkerMemory(
        context=CONTEXT_BYTES,
        weights=weight_bytes,
        peak=max(LEAST_PEAK_BYTES, weight_bytes // 2),
        source="estimate",
    )
