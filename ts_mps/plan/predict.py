"""What a placement will answer: what its GPUs make of it, as far as the host's cores carry that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ts_mps.plan.cores import threads_of
from ts_mps.plan.instance import Counts, Floats
from ts_mps.plan.problem import Problem

#: Time of host cores that TorchServe's frontend takes for a request, in seconds (measured on the host of an H200, at
#: 9,000 requests of 1 KB in a second; large bodies take more).
FRONTEND_SECONDS = 0.2e-3


@dataclass(frozen=True)
class Prediction:
    """Throughput of a placement.

    Attributes:
        by_gpu: Requests per second that the GPUs make, shape (GPUs, models of the problem).
        computed: The same of all GPUs, but no more than the workers' threads compute, shape (models,).
        rates: What the host's cores carry of that, shape (models,).
        busy: Host cores that workers and frontend would keep busy if the host had enough; 0 where not measured.
        carried: The part of the throughput that the host's cores carry.
    """

    by_gpu: Floats
    computed: Floats
    rates: Floats
    busy: float
    carried: float = 1.0


def predict(problem: Problem, counts: Counts, others: int) -> Prediction:
    """The throughput of a placement.

    A worker with t threads computes on t cores at most, so n of them answer at most n x t / (time of host cores for a
    request) requests per second. And all workers with the frontend cannot keep more cores busy than there are; where
    they would, every model is slowed down alike.

    Args:
        problem: What was solved.
        counts: Workers, shape (GPUs, models of the problem).
        others: Workers that are not in the problem, as they are on the CPU.
    """
    host, instance = problem.facts.host, problem.instance
    cores = len(host.cores)
    if not instance.loads:
        return Prediction(np.zeros(counts.shape), np.zeros(0), np.zeros(0), 0.0)
    by_gpu = instance.throughput(counts)
    computed: Floats = by_gpu.sum(axis=0)
    workers = counts.sum(axis=0)
    seconds = np.array([load.curve.cpu_seconds for load in instance.loads])
    known = seconds > 0
    threads = threads_of(host, int(workers.sum()) + others)
    if threads:
        computed[known] = np.minimum(computed[known], workers[known] * threads / seconds[known])
    busy = float(computed[known] @ (seconds[known] + FRONTEND_SECONDS))
    carried = min(1.0, cores / busy) if busy else 1.0
    return Prediction(by_gpu, computed, computed * carried, busy, carried)
