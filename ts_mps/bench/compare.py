"""``ts-mps bench compare``: what is compared, as data, and the study that comes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ts_mps.bench.arms import most_best_arms
from ts_mps.bench.conductor import Conductor, Progress, Search
from ts_mps.bench.cores import Division, pinned
from ts_mps.bench.loading import Generator
from ts_mps.bench.records import Arm, Load, Study
from ts_mps.bench.runner import Runner
from ts_mps.bench.site import Site
from ts_mps.bench.study import StudyFile

#: Requests in flight for each place in the largest batch of all workers: a full batch always waits.
DEPTH = 4


@dataclass(frozen=True)
class Job:
    """What is compared and how.

    Attributes:
        title: What was asked, as a line.
        workload: What is served and sent, for the study: names, sizes, digests, check.
        arms: What is compared, the likeliest baseline first.
        site: What all servers have in common.
        bodies: Folder of payloads that :func:`ts_mps.bench.load.write_bodies` wrote.
        scratch: Folder for recorded answers and the generator's files.
        division: Who runs on which cores.
        blocks: How many, at least 1.
        seconds: Counted time of a load.
        warm_up: Seconds of the same load before it.
        seed: Of orders, arrivals and payloads.
        connections: Of the closed loop; the same for every arm, as arms are compared at the same load.
        processes: Of the generator.
        check: "status" or "reference".
        timeout: Seconds that an answer may take.
        search: How the largest rates are looked for after the blocks; None for not at all.
        kind: Of the study; see :class:`ts_mps.bench.records.Study`.
    """

    title: str
    workload: Mapping[str, Any]
    arms: tuple[Arm, ...]
    site: Site
    bodies: Path
    scratch: Path
    division: Division
    blocks: int
    seconds: float
    warm_up: float
    seed: int
    connections: int
    processes: int
    check: str
    timeout: float
    search: Search | None = None
    kind: str = "compare"


def begun(job: Job, machine: Mapping[str, Any]) -> Study:
    """The study of a job, without runs yet."""
    return Study(
        title=job.title,
        kind=job.kind,
        workload=job.workload,
        arms=job.arms,
        blocks=job.blocks,
        seed=job.seed,
        machine=machine,
        settings={
            "seconds": job.seconds,
            "warm_up": job.warm_up,
            "connections": job.connections,
            "processes": job.processes,
            "check": job.check,
            "timeout": job.timeout,
            "search": asdict(job.search) if job.search else None,
            # What goodput and the rates that held are counted by, unless a report says otherwise.
            "slo_ms": job.search.objective_ms if job.search else None,
        },
        runs=(),
        started=datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
        incomplete="It has not ended yet.",
    )


def compare(job: Job, file: StudyFile, report: Callable[[Progress], None]) -> Study:
    """Run what is missing of a study; its file holds every run as soon as it is there.

    Returns:
        The study as it is in the file.

    Raises:
        TsMpsError: The file cannot be written, or a server could not be stopped; what was measured is kept.
        KeyboardInterrupt: What was measured is kept, the run under way is dropped.
    """
    generator = Generator(
        model=job.site.model,
        bodies=job.bodies,
        scratch=job.scratch,
        cores=job.division.generator,
        processes=job.processes,
        check=job.check,
        timeout=job.timeout,
    )
    conductor = Conductor(file, Runner(job.site, generator).run, report)

    def closed(block: int) -> Load:
        # One seed for all arms of a block, so that each gets the same payloads in the same order.
        return Load("closed", job.connections, 0.0, job.seconds, job.warm_up, job.seed + block)

    def poisson(rate: float) -> Load:
        return Load("poisson", 0, rate, job.seconds, job.warm_up, job.seed)

    after = job.search.steps * most_best_arms(file.study.arms) if job.search else 0
    # This process looks at GPUs and processes while a load runs, which must not cost the server's cores either.
    with pinned(job.division.generator):
        conductor.blocks(closed, after)
        if job.search:
            conductor.rates(poisson, job.search)
    file.end(conductor.left_out())
    return file.study


def connections_for(arms: Iterable[Arm]) -> int:
    """Connections that keep all workers' batches full in every arm."""
    return DEPTH * max(arm.workers * arm.batch_size for arm in arms)


def bodies_digest(folder: Path) -> str:
    """SHA-256 of all files of a payload folder, so that a study is not gone on with other payloads."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
