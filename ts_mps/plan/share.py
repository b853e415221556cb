"""What part of a GPU a worker may use: thread percentages, and the multiprocessors that they leave."""

from __future__ import annotations

import math

from ts_mps.plan.facts import ModelFacts, Policy

#: A thread percentage is rounded down to whole texture processing clusters of two multiprocessors (measured on an H200,
#: driver 580: 36 percentages from 10 to 100 of 132).
SM_STEP = 2
#: The fewest that a client gets, however small its percentage (measured there from 0.5 to 7 %).
LEAST_SMS = 8


def granted_sms(total: int, percentage: float) -> int:
    """The multiprocessors that a client may use, as CUDA will report them; 0 where ``total`` is not known.

    Args:
        total: Of the whole GPU.
        percentage: CUDA_MPS_ACTIVE_THREAD_PERCENTAGE in (0, 100].
    """
    steps = math.floor(total * percentage / 100 / SM_STEP + 1e-9)
    return min(total, total if percentage >= 100 else max(LEAST_SMS, steps * SM_STEP))


def percentage_of(model: ModelFacts, policy: Policy, workers: int) -> float | None:
    """The thread percentage of a model's worker on a GPU with so many workers; None for no limit.

    The model's own percentage beats the policy. "even" gives 100 / n, "overlap" 100 / (0.5 n) (NVIDIA MPS guide,
    "Volta MPS Execution Resource Provisioning"), cut to hundredths so that even shares never add up to more than 100.
    """
    if model.thread_percentage is not None:
        return model.thread_percentage
    if policy.percentages == "fixed":
        return policy.percentage
    if policy.percentages == "none" or workers < 1:
        return None
    share = 100 / workers if policy.percentages == "even" else 100 / (0.5 * workers)
    return None if share >= 100 else math.floor(share * 100) / 100


def percentage_why(model: ModelFacts, policy: Policy, workers: int) -> str:
    """Where the percentage comes from, as a part of a sentence."""
    if model.thread_percentage is not None:
        return f"the model's own for {model.name}"
    if policy.percentages == "fixed":
        return "fixed for all workers"
    rule = "100 / n" if policy.percentages == "even" else "100 / (0.5 n)"
    return f"{policy.percentages}: {rule} with n = {workers} workers on the GPU"


def memory_limit(limit: int | None) -> str | None:
    """A limit in bytes as CUDA_MPS_PINNED_DEVICE_MEM_LIMIT takes it: a whole number of MiB, rounded up."""
    return None if limit is None else f"{-(-limit // 2**20)}M"
