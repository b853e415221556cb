"""Facts that contradict themselves, refused before anything is planned."""

from __future__ import annotations

import math

from ts_mps.errors import PlanError
from ts_mps.plan.facts import PERCENTAGE_POLICIES, Facts, GpuFacts, ModelFacts, Policy

#: More workers of one model than this are a slip of the pen, and would only keep the planner busy.
MOST_WORKERS = 10_000

#: Between the smallest and the largest weight, gains stay far above the solvers' rounding.
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6


def check(facts: Facts) -> None:
    """Refuse numbers that cannot be meant.

    Raises:
        PlanError: It names the model or rule, the number, and what it may be.
    """
    if facts.mps not in ("on", "off", "auto"):
        raise PlanError(f'MPS is asked to be "{facts.mps}".', "Use on, off or auto.")
    if not facts.host.cores:
        raise PlanError("The host offers no cores to workers.", "Look at the CPU affinity that ts-mps runs under.")
    _check_policy(facts.policy)
    for gpu in facts.gpus:
        _check_gpu(gpu)
    for model in facts.models:
        _check_model(model, facts.gpus)


def _check_policy(policy: Policy) -> None:
    _within(policy.reserve >= 0, f"A reserve of {policy.reserve} clients", "0 or more")
    _within(0 <= policy.memory_margin < 1, f"A memory margin of {policy.memory_margin}", "at least 0 and below 1")
    _within(_number(policy.cores_per_worker), f"{policy.cores_per_worker} cores for each worker", "0 or more")
    _within(_number(policy.least_gain), f"A least gain of {policy.least_gain}", "0 or more")
    known = policy.percentages in PERCENTAGE_POLICIES
    _within(known, f'The thread percentage policy "{policy.percentages}"', f"one of {', '.join(PERCENTAGE_POLICIES)}")
    if policy.percentages == "fixed":
        _within(
            _percentage(policy.percentage), f"A fixed thread percentage of {policy.percentage}", "above 0, up to 100"
        )


def _check_gpu(gpu: GpuFacts) -> None:
    sizes = (gpu.memory_total, gpu.memory_taken, gpu.sms, gpu.cap, gpu.attached)
    _within(min(sizes) >= 0, f"A number below 0 among the facts of {gpu.label}", "0 or more")


def _check_model(model: ModelFacts, gpus: tuple[GpuFacts, ...]) -> None:
    wish = model.workers
    name = f"for model {model.name}"
    _within(0 <= wish.least <= MOST_WORKERS, f"{wish.least} workers {name} ({wish.source})", f"0 to {MOST_WORKERS:,}")
    if wish.most is not None and wish.most < wish.least:
        raise PlanError(
            f"Model {model.name} shall have at least {wish.least} and at most {wish.most} workers ({wish.source}).",
            "Give a least number that is not above the greatest.",
        )
    weighty = LEAST_WEIGHT <= model.weight <= MOST_WEIGHT
    _within(weighty, f"A weight of {model.weight} {name}", f"from {LEAST_WEIGHT:g} to {MOST_WEIGHT:,.0f}")
    _within(model.batch_size >= 1, f"A batch size of {model.batch_size} {name}", "1 or more")
    if model.thread_percentage is not None:
        share = model.thread_percentage
        _within(_percentage(share), f"A thread percentage of {share} {name}", "above 0, up to 100")
    if model.memory is not None:
        sizes = (model.memory.context, model.memory.weights, model.memory.peak)
        _within(min(sizes) >= 0, f"A memory figure below 0 {name}", "0 or more bytes")
    if model.memory_limit is not None:
        _within(model.memory_limit > 0, f"A memory limit of {model.memory_limit} bytes {name}", "above 0")
    if model.on_gpu and gpus:
        _check_affinity(model, gpus)


def _check_affinity(model: ModelFacts, gpus: tuple[GpuFacts, ...]) -> None:
    if any(not 0 <= position < len(gpus) for position in model.device_ids):
        raise PlanError(
            f"Model {model.name} asks for deviceIds {list(model.device_ids)}, and {len(gpus)} GPU(s) are in use.",
            f"Use ids from 0 to {len(gpus) - 1} in its model-config.yaml, or make more GPUs visible.",
        )
    uuids = [gpu.uuid for gpu in gpus]
    for uuid in model.gpus:
        if uuid not in uuids:
            raise PlanError(
                f"Model {model.name} may use {uuid} only, and that is not among the GPUs in use ({', '.join(uuids)}).",
                "Correct its gpus in ts-mps.toml, or make that GPU visible.",
            )
    outside = sorted({position for position in model.device_ids if model.gpus and uuids[position] not in model.gpus})
    if outside:
        raise PlanError(
            f"Model {model.name} asks for deviceIds {list(model.device_ids)}, and ts-mps.toml keeps it off "
            f"{', '.join(gpus[position].label for position in outside)}.",
            "Make the two agree, or leave one of them out.",
        )


def _within(fine: bool, what: str, allowed: str) -> None:
    if not fine:
        raise PlanError(f"{what} cannot be planned with.", f"It must be {allowed}.")


def _number(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _percentage(value: float | None) -> bool:
    return value is not None and 0 < value <= 100
