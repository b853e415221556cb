"""What is to be measured, and what has been so far."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ts_mps import __version__
from ts_mps.gpu.inventory import Gpu
from ts_mps.plan.profile import BatchRun, Profile, ScaleRun
from ts_mps.profile.messages import Request
from ts_mps.torchserve.archives import Archive


@dataclass(frozen=True)
class Job:
    """What is to be measured.

    Attributes:
        archive: The model.
        sha256: Of the archive's content.
        files: Payloads.
        content_type: Their Content-Type; None to go by the files' names.
        requests: The payloads as requests.
        batch_sizes: Ascending; ``scaling_batch`` is one of them.
        scaling_batch: Batch size for thread percentages and for several workers.
        workers: Numbers of workers, ascending; empty to leave that part out.
        percentages: Thread percentages below 100; without MPS there are none.
        seconds: Length of each window.
        repeats: Windows for each number of workers.
        gap: Seconds between an answer and the next batch.
        gpu: Where to measure; None for the CPU.
        driver: The driver's version; empty without a GPU.
        mps: Whether workers are MPS clients, and several workers are measured both ways.
        control_version: Binary version of the control program (13000 for CUDA 13.0); 0 without MPS.
        adopted_pipe: Pipe folder of a daemon that somebody else started; None to start one.
        shared_gpu: Go on, with a warning, where other processes use the GPU.
    """

    archive: Archive
    sha256: str
    files: tuple[Path, ...]
    content_type: str | None
    requests: tuple[Request, ...]
    batch_sizes: tuple[int, ...]
    scaling_batch: int
    workers: tuple[int, ...]
    percentages: tuple[float, ...]
    seconds: float
    repeats: int
    gap: float
    gpu: Gpu | None
    driver: str
    mps: bool
    control_version: int = 0
    adopted_pipe: Path | None = None
    shared_gpu: bool = False

    @property
    def model(self) -> str:
        """The model's name: the manifest's, else the file's."""
        return self.archive.name or self.archive.path.absolute().name.partition(".")[0]


@dataclass
class Book:
    """What has been measured so far; it stays whole when the rest is broken off.

    Attributes:
        runs: One worker alone.
        scaling: Several workers.
        notes: What the reader should know, one sentence each.
        sms: The GPU's streaming multiprocessors; 0 until a worker has seen them.
        software: What the workers run on: torch, CUDA.
        incomplete: Why it was broken off, as a sentence; empty if it was not.
    """

    runs: list[BatchRun] = field(default_factory=list)
    scaling: list[ScaleRun] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sms: int = 0
    software: dict[str, Any] = field(default_factory=dict)
    incomplete: str = ""

    def profile(self, job: Job) -> Profile:
        """The profile with what there is."""
        return Profile(
            model=job.model,
            archive=job.archive.path.absolute().name,
            sha256=job.sha256,
            gpu=job.gpu.name if job.gpu else "CPU",
            sms=self.sms,
            runs=tuple(self.runs),
            scaling=tuple(self.scaling),
            gap_milliseconds=job.gap * 1000,
            machine={**_machine(job), **self.software, "notes": self.notes, "incomplete": self.incomplete},
        )


def _machine(job: Job) -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "ts_mps": __version__,
        "torchserve": _version("torchserve"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "driver": job.driver,
        "mps": job.mps,
        "mps_control": job.control_version,
        "gpu_uuid": job.gpu.uuid if job.gpu else None,
        "gpu_memory": job.gpu.memory_total if job.gpu else 0,
        "compute_mode": job.gpu.compute_mode if job.gpu else None,
        "seconds": job.seconds,
        "repeats": job.repeats,
        "payloads": [{"file": f.name, "bytes": len(r.body)} for f, r in zip(job.files, job.requests, strict=True)],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
