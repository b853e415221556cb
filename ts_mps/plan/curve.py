"""What n workers of a model answer on one GPU: from its profile, or from the rule that stands in for one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ts_mps.errors import PlanError
from ts_mps.plan.facts import ModelFacts
from ts_mps.plan.profile import Profile

#: Without a profile, what two workers on one GPU are taken to answer together when one alone answers 1: under MPS one
#: computes while TorchServe hands the other its next batch. Without MPS they take turns, and a second one adds nothing.
TWO_WORKERS = 1.5


@dataclass(frozen=True)
class Curve:
    """Throughput of a model on one GPU that it has for itself.

    Attributes:
        rates: ``rates[n]`` of n workers in requests per second; flat after the last. Without a profile in units of
            what one worker answers.
        measured: Whether it comes from a profile.
        limited: (thread percentage below 100, requests per second of one worker under it), ascending.
        gpu_seconds: Time of the GPU for one request; infinite where it was not traced.
        cpu_seconds: Time of host cores that a worker takes for one request; 0 where it was not measured.
    """

    rates: tuple[float, ...]
    measured: bool
    limited: tuple[tuple[float, float], ...] = ()
    gpu_seconds: float = math.inf
    cpu_seconds: float = 0.0

    @property
    def last(self) -> int:
        """The most workers on one GPU that something is known of, and that a plan chooses by itself."""
        return len(self.rates) - 1

    @property
    def peak(self) -> float:
        """The highest rate of any number of workers."""
        return max(self.rates)

    @property
    def part(self) -> float:
        """The part of a GPU that each request per second uses.

        At its highest rate a model uses all of the GPU at most, and its kernels, one after the other, would take
        ``gpu_seconds`` of each second for each request. Both are upper bounds: the host may be what limits the rate,
        and under MPS kernels run side by side. The lower one counts.
        """
        return min(1 / self.peak, self.gpu_seconds)

    def rate(self, workers: int) -> float:
        """Requests per second of so many workers."""
        return self.rates[min(workers, self.last)]

    def table(self, most: int) -> npt.NDArray[np.float64]:
        """The rates of 0 to ``most`` workers, shape (most + 1,)."""
        return np.array([self.rate(workers) for workers in range(most + 1)])

    def one_worker(self, percentage: float | None) -> float:
        """What one worker answers at most under a thread percentage, in requests per second.

        The next lower measured percentage decides; below all of them its rate shrinks in proportion.
        """
        if percentage is None or percentage >= 100 or not self.limited:
            return float("inf")
        lower = [rate for measured, rate in self.limited if measured <= percentage]
        if lower:
            return max(lower)
        measured, rate = self.limited[0]
        return rate * percentage / measured


def measured_in(profile: Profile, batch_size: int, mps: bool) -> bool:
    """Whether the profile holds throughputs of several workers at this batch size, with or without MPS."""
    return any(run.batch_size == batch_size and run.mps == mps for run in profile.scaling)


def curve_of(model: ModelFacts, mps: bool) -> Curve:
    """The curve of a model with or without MPS.

    Between measured numbers of workers it is linear. A profile that holds one worker only gives a flat curve: what a
    second one adds is not known.

    Raises:
        PlanError: The profile was measured at another batch size.
    """
    profile = model.profile
    if profile is None:
        return Curve((0.0, 1.0, TWO_WORKERS) if mps else (0.0, 1.0), measured=False)
    points = _points(model, profile, mps) or _one_alone(model, profile, mps)
    known = sorted({0: 0.0, **points}.items())
    workers = np.arange(known[-1][0] + 1)
    rates = np.interp(workers, [number for number, _ in known], [rate for _, rate in known])
    alone = profile.run(model.batch_size)
    gpu, cpu = (alone.gpu_milliseconds, alone.cpu_milliseconds) if alone else (None, None)
    return Curve(
        rates=tuple(float(rate) for rate in rates),
        measured=True,
        limited=_limited(model, profile) if mps else (),
        gpu_seconds=math.inf if gpu is None else gpu / 1000 / model.batch_size,
        cpu_seconds=0.0 if cpu is None else cpu / 1000 / model.batch_size,
    )


def _points(model: ModelFacts, profile: Profile, mps: bool) -> dict[int, float]:
    return {
        run.workers: run.requests_per_second
        for run in profile.scaling
        if run.batch_size == model.batch_size and run.mps == mps
    }


def _one_alone(model: ModelFacts, profile: Profile, mps: bool) -> dict[int, float]:
    """One worker, where several were not measured so: as it ran alone, else its part of those measured otherwise."""
    alone = profile.run(model.batch_size)
    if alone is not None:
        return {1: _rate(model.batch_size, alone.milliseconds, profile)}
    otherwise = _points(model, profile, not mps)
    if not otherwise:
        raise _another_batch(model, profile)
    fewest = min(otherwise)
    return {1: otherwise[fewest] / fewest}


def _limited(model: ModelFacts, profile: Profile) -> tuple[tuple[float, float], ...]:
    return tuple(
        sorted(
            (run.percentage, _rate(model.batch_size, run.milliseconds, profile))
            for run in profile.runs
            if run.batch_size == model.batch_size and run.percentage is not None and run.percentage < 100
        )
    )


def _rate(batch_size: int, milliseconds: float, profile: Profile) -> float:
    return 1000 * batch_size / (milliseconds + profile.gap_milliseconds)


def _another_batch(model: ModelFacts, profile: Profile) -> PlanError:
    sizes = sorted({run.batch_size for run in profile.runs} | {run.batch_size for run in profile.scaling})
    return PlanError(
        f"Model {model.name} serves batches of {model.batch_size}, and its profile is of another batch: it was "
        f"measured at {', '.join(map(str, sizes)) or 'none'}.",
        f"Measure it again: ts-mps profile {profile.archive} --scaling-batch {model.batch_size}, or serve it with "
        "a batch size that was measured.",
    )
