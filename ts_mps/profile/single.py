"""One worker alone: what it holds in memory and how long its batches take."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from ts_mps.errors import TsMpsError
from ts_mps.plan.profile import BatchRun
from ts_mps.profile.arithmetic import percentile
from ts_mps.profile.frontend import BadAnswer, NoMemory
from ts_mps.profile.job import Book, Job
from ts_mps.profile.memory import GpuMemory, Peak
from ts_mps.profile.messages import Disconnected
from ts_mps.profile.payload import batch_messages
from ts_mps.profile.stage import Stage
from ts_mps.profile.team import Member, Team

#: At least so many batches before the clock starts, and so many after; slow models need them, fast ones do more.
_WARM_BATCHES = 3
_TIMED_BATCHES = 10
#: Batches under the tracer, which is on last, since it takes memory and time of its own.
_TRACED_BATCHES = 8
#: Memory that may have changed hands while one worker was measured: the MPS server's own, and what NVML rounds.
_DRIFT = 64 * 2**20
_REPORT_SECONDS = 120.0
#: How long a driver or an MPS server may take to give an ended worker's memory back.
_GIVEN_BACK_SECONDS = 10.0


def rehearse(job: Job, stage: Stage, book: Book) -> None:
    """Load once, run a few batches and forget it: whatever is wrong with archive or payload shows here.

    It also warms the disk's cache, and lets the MPS server take its own memory before any is measured.

    Raises:
        TsMpsError: The worker does not load, or does not answer every request with 200.
    """

    def attached(seen: dict[str, Any]) -> None:
        book.software.update(torch=seen["torch"], cuda=seen["cuda"])
        book.sms = seen["sms"]

    size = job.batch_sizes[0]
    with Team(job, stage, 1, size, mps=job.mps, on_attached=attached) as team:
        member = team.members[0]
        try:
            for message in itertools.islice(itertools.cycle(batch_messages(job.requests, size)), _WARM_BATCHES):
                member.driven.ask(message)
        except (BadAnswer, NoMemory, Disconnected, TimeoutError) as error:
            raise team.explain(member, error) from error


def measure_worker(
    job: Job, stage: Stage, book: Book, memory: GpuMemory | None, batch_size: int, percentage: float | None = None
) -> BatchRun:
    """Measure one worker in a process of its own.

    Args:
        job: The model and the lengths of windows.
        stage: Where it runs.
        book: Takes notes.
        memory: The GPU's; None on the CPU, where memory is not measured.
        batch_size: Requests in each batch.
        percentage: Thread percentage; None for no limit.

    Raises:
        NoMemory: There is not enough memory for this batch size.
        TsMpsError: The worker failed, or somebody else's use of the GPU changed meanwhile.
    """
    seen: dict[str, Any] = {}
    before = memory.settled() if memory else 0

    def attached(what: dict[str, Any]) -> None:
        seen.update(what, used=memory.settled() if memory else 0)

    team = Team(job, stage, 1, batch_size, mps=job.mps, percentage=percentage, on_attached=attached)
    with team:
        loaded = memory.settled() if memory else 0
        member = team.members[0]
        try:
            with memory.peak() if memory else nullcontext(Peak(0)) as peak:
                milliseconds, cpu = _timed(job, member, batch_size)
            gpu = _traced(job, member, book, batch_size) if memory else None
        except (BadAnswer, NoMemory, Disconnected, TimeoutError) as error:
            raise team.explain(member, error) from error
    if memory is not None:
        _check_drift(job, book, _drift(memory, before))
    median = percentile(milliseconds, 50)
    return BatchRun(
        batch_size=batch_size,
        percentage=percentage,
        sms=seen["sms"],
        milliseconds=median,
        low=percentile(milliseconds, 10),
        high=percentile(milliseconds, 90),
        gpu_milliseconds=gpu,
        batches=len(milliseconds),
        context=max(0, seen["used"] - before),
        weights=max(0, loaded - seen["used"]),
        peak=max(0, peak.bytes - loaded),
        cpu_milliseconds=cpu,
    )


def _timed(job: Job, member: Member, batch_size: int) -> tuple[list[float], float]:
    """Milliseconds of each batch, and milliseconds of host cores for one, on average."""
    messages = itertools.cycle(batch_messages(job.requests, batch_size))
    _run(job, member, messages, job.seconds / 4, _WARM_BATCHES)
    _question(member, {"do": "clear"})
    _run(job, member, messages, job.seconds, _TIMED_BATCHES)
    report = _question(member, {"do": "report"})
    milliseconds = [float(value) for value in report["milliseconds"]]
    return milliseconds, 1000 * float(report["cpu_seconds"]) / len(milliseconds)


def _run(job: Job, member: Member, messages: Iterator[bytes], seconds: float, least: int) -> None:
    """Batches with the frontend's gap between them, for so many seconds and at least so many."""
    end = time.monotonic() + seconds
    done = 0
    while done < least or time.monotonic() < end:
        member.driven.ask(next(messages))
        done += 1
        time.sleep(job.gap)


def _traced(job: Job, member: Member, book: Book, batch_size: int) -> float | None:
    """GPU time of a batch; None, with a note, where the tracer does not work, which takes nothing from the rest."""
    try:
        answer = _question(member, {"do": "trace"})
        messages = itertools.islice(itertools.cycle(batch_messages(job.requests, batch_size)), _TRACED_BATCHES)
        for message in messages:
            member.driven.ask(message)
        answer |= _question(member, {"do": "traced", "batches": _TRACED_BATCHES})
    except (BadAnswer, NoMemory, Disconnected, TimeoutError) as error:
        answer = {"gpu_milliseconds": None, "why": f"the worker failed under the tracer ({type(error).__name__})"}
    value = answer.get("gpu_milliseconds")
    if value is None:
        why = answer.get("why", "the trace shows no work on the GPU")
        book.notes.append(f"Batch size {batch_size}: GPU time is not known: {why}.")
        return None
    return float(value)


def _question(member: Member, question: dict[str, Any]) -> dict[str, Any]:
    member.channel.send(question)
    return member.channel.receive(_REPORT_SECONDS)


def _drift(memory: GpuMemory, before: int) -> int:
    """By how much the GPU's memory differs from before, once the worker's own has been given back."""
    deadline = time.monotonic() + _GIVEN_BACK_SECONDS
    while abs(drift := memory.settled() - before) > _DRIFT and time.monotonic() < deadline:
        time.sleep(0.1)
    return drift


def _check_drift(job: Job, book: Book, drift: int) -> None:
    if abs(drift) <= _DRIFT:
        return
    mib = drift / 2**20
    sentence = f"While a worker was measured, other processes' memory on the GPU changed by {mib:+.0f} MiB"
    if not job.shared_gpu:
        raise TsMpsError(
            f"{sentence}, so the figures would be wrong.",
            "Profile on a GPU that nobody else uses, or pass --shared-gpu to take the figures all the same.",
        )
    book.notes.append(f"{sentence}; memory figures may be wrong by as much.")
