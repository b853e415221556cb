"""What was measured of one model, as data: written by ``ts-mps profile``, read by the planner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: Version of a profile's JSON form; raised when a field changes its meaning.
PROFILE_VERSION = 1

#: More workers, or more requests in a batch, than this were never measured.
_MOST = 100_000


@dataclass(frozen=True)
class BatchRun:
    """One worker alone, at one batch size and thread percentage.

    Attributes:
        batch_size: Requests in each batch.
        percentage: CUDA_MPS_ACTIVE_THREAD_PERCENTAGE that was set; None without MPS or without a limit.
        sms: Streaming multiprocessors that CUDA showed the worker; 0 where that was not read.
        milliseconds: Median time of a batch from taken to answered, in the worker.
        low: 10th percentile of the same.
        high: 90th percentile of the same.
        gpu_milliseconds: Of the median batch, the time in which the GPU computed or copied; None where not traced.
        batches: Batches that were timed.
        context: Bytes of GPU memory of the CUDA context alone.
        weights: Bytes that loading added, warm-up and captured graphs included.
        peak: Bytes that batches added on top.
        cpu_milliseconds: Time of host cores that the worker's process took for a batch, all of its threads, waiting in
            a loop included; None where not measured.
    """

    batch_size: int
    percentage: float | None
    sms: int
    milliseconds: float
    low: float
    high: float
    gpu_milliseconds: float | None
    batches: int
    context: int
    weights: int
    peak: int
    cpu_milliseconds: float | None = None


@dataclass(frozen=True)
class ScaleRun:
    """Several workers at once, each answering batch after batch.

    Attributes:
        workers: How many.
        mps: Whether they were MPS clients.
        batch_size: Requests in each batch.
        requests_per_second: Of all of them together, median over the repeats.
        low: The slowest repeat.
        high: The fastest repeat.
    """

    workers: int
    mps: bool
    batch_size: int
    requests_per_second: float
    low: float
    high: float


@dataclass(frozen=True)
class Profile:
    """Everything that was measured of one archive on one machine.

    Attributes:
        model: Name of the model in the archive.
        archive: Its file's name.
        sha256: Of the archive's content, so that a profile of another model is noticed.
        gpu: Product name of the GPU; "CPU" where there was none.
        sms: The GPU's streaming multiprocessors.
        runs: One worker alone, by batch size and percentage.
        scaling: Several workers, by number and MPS.
        gap_milliseconds: Time between an answer and the next batch in which TorchServe's frontend works.
        machine: Where it was measured: driver, CUDA, torch, cores, time; for people.
    """

    model: str
    archive: str
    sha256: str
    gpu: str
    sms: int
    runs: tuple[BatchRun, ...]
    scaling: tuple[ScaleRun, ...]
    gap_milliseconds: float
    machine: Mapping[str, Any]

    def run(self, batch_size: int) -> BatchRun | None:
        """One unlimited worker at this batch size, if it was measured."""
        found = [run for run in self.runs if run.batch_size == batch_size and run.percentage in (None, 100)]
        return found[0] if found else None

    def as_json(self) -> dict[str, Any]:
        """The profile's JSON form."""
        return {"version": PROFILE_VERSION, **asdict(self)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Profile:
        """Read the JSON form back.

        Raises:
            ValueError: It is of another version, lacks something, or holds a number that cannot have been measured.
        """
        if value.get("version") != PROFILE_VERSION:
            raise ValueError(f"it is of version {value.get('version')}, this ts-mps reads version {PROFILE_VERSION}")
        try:
            profile = Profile(
                model=str(value["model"]),
                archive=str(value["archive"]),
                sha256=str(value["sha256"]),
                gpu=str(value["gpu"]),
                sms=int(value["sms"]),
                runs=tuple(BatchRun(**run) for run in value["runs"]),
                scaling=tuple(ScaleRun(**run) for run in value["scaling"]),
                gap_milliseconds=float(value["gap_milliseconds"]),
                machine=dict(value["machine"]),
            )
            _check(profile)
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is not a profile: {error}") from error
        return profile


def _check(profile: Profile) -> None:
    if not (math.isfinite(profile.gap_milliseconds) and profile.gap_milliseconds >= 0):
        raise ValueError(f"its gap of {profile.gap_milliseconds} milliseconds cannot have been measured")
    for run in profile.runs:
        sizes = (run.context, run.weights, run.peak)
        limit = run.percentage is None or 0 < run.percentage <= 100
        times = [run.milliseconds, *(one for one in (run.gpu_milliseconds, run.cpu_milliseconds) if one is not None)]
        if not (_count(run.batch_size) and limit and all(map(_above, times)) and all(map(_size, sizes))):
            raise ValueError(f"its run at batch size {run.batch_size} holds a number that cannot have been measured")
    for scale in profile.scaling:
        if not (_count(scale.workers) and _count(scale.batch_size) and _above(scale.requests_per_second)):
            raise ValueError(f"its run of {scale.workers} workers holds a number that cannot have been measured")


def _count(number: object) -> bool:
    return isinstance(number, int) and 1 <= number <= _MOST


def _size(number: object) -> bool:
    return isinstance(number, int) and number >= 0


def _above(number: float) -> bool:
    return math.isfinite(number) and number > 0
