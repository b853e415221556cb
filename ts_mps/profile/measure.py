"""What is measured of a model, in which order, and when a series ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import pynvml

from ts_mps.errors import NotReadyError, PreflightError, TsMpsError
from ts_mps.gpu.inventory import Gpu
from ts_mps.plan.profile import ScaleRun
from ts_mps.profile.frontend import NoMemory
from ts_mps.profile.job import Book, Job
from ts_mps.profile.memory import GpuMemory
from ts_mps.profile.scaling import measure_scale
from ts_mps.profile.single import measure_worker, rehearse
from ts_mps.profile.stage import Stage, stage
from ts_mps.torchserve.archives import Archive

#: Memory on a GPU that nobody's process explains, above which somebody is there whom a container does not see.
_UNSEEN = 256 * 2**20

#: Windows that differ by a larger part of their median are worth a word.
_STEADY = 0.2

Report = Callable[[str], None]


def check_archive(archive: Archive) -> None:
    """Refuse a model whose workers TorchServe starts or speaks to in another way.

    Raises:
        PreflightError: It is such a model.
    """
    config = archive.config or {}
    why = ""
    if archive.runtime == "LSP":
        why = "has the C++ runtime LSP"
    elif config.get("parallelType"):
        why = "sets parallelType, so one worker of it is several processes"
    elif config.get("asyncCommunication"):
        why = "sets asyncCommunication, so its worker answers while it takes the next requests"
    elif config.get("useVenv"):
        why = "sets useVenv, so its workers have an interpreter of their own"
    if why:
        raise PreflightError(f"The archive {archive.path} {why}, which ts-mps profile cannot measure.")


def measure(job: Job, book: Book, environ: Mapping[str, str], report: Report) -> None:
    """Measure everything that the job names, into the book.

    Args:
        job: What is to be measured.
        book: Gets each figure as soon as there is one.
        environ: What the workers' environment is made from.
        report: Told what is measured now.

    Raises:
        TsMpsError: Something failed; nothing that was started is left, and the book holds what was measured before.
        KeyboardInterrupt: As that.
    """
    try:
        with GpuMemory(job.gpu.uuid) if job.gpu else nullcontext() as memory:
            if job.gpu is not None and memory is not None:
                _check_alone(job, book, job.gpu, memory)
            with stage(job, environ) as place:
                report("loading once, to see that it works")
                rehearse(job, place, book)
                _batch_sizes(job, place, book, memory, report)
                _percentages(job, place, book, memory, report)
                _scaling(job, place, book, memory, report)
    except pynvml.NVMLError as error:
        raise TsMpsError(f"NVML cannot read the memory of the GPU: {error}.", "See: nvidia-smi") from error


def _check_alone(job: Job, book: Book, gpu: Gpu, memory: GpuMemory) -> None:
    where = f"GPU {gpu.index} ({gpu.name})"
    strangers, used = memory.strangers(), memory.settled()
    if strangers:
        sentence = f"{where} is used by other processes (pid {', '.join(map(str, strangers))})"
    elif used > _UNSEEN:
        sentence = f"{where} has {used / 2**20:.0f} MiB in use by processes that cannot be seen from here"
    else:
        return
    if not job.shared_gpu:
        raise PreflightError(
            f"{sentence}, so times and memory would be wrong.",
            "Choose another GPU with --gpu INDEX, end them, or pass --shared-gpu to measure all the same.",
        )
    book.notes.append(f"{sentence}; times and memory may be wrong.")


def _batch_sizes(job: Job, place: Stage, book: Book, memory: GpuMemory | None, report: Report) -> None:
    for size in job.batch_sizes:
        report(f"batch size {size}")
        try:
            book.runs.append(measure_worker(job, place, book, memory, size))
        except NoMemory as error:
            book.notes.append(f"Batch size {size} and larger are left out: {error.what}")
            return


def _percentages(job: Job, place: Stage, book: Book, memory: GpuMemory | None, report: Report) -> None:
    if not _fits(job, book):
        return
    for percentage in job.percentages:
        report(f"batch size {job.scaling_batch}, thread percentage {percentage:g}")
        try:
            book.runs.append(measure_worker(job, place, book, memory, job.scaling_batch, percentage))
        except (NoMemory, NotReadyError) as error:  # also a worker that computes wrongly with so few SMs
            book.notes.append(f"Thread percentage {percentage:g} is left out: {error.what}")


def _scaling(job: Job, place: Stage, book: Book, memory: GpuMemory | None, report: Report) -> None:
    if not _fits(job, book):
        if job.workers:
            book.notes.append(f"Several workers were not measured: batch size {job.scaling_batch} does not fit.")
        return
    for mps in (False, True) if job.mps else (False,):
        for workers in job.workers:
            why = _too_many(job, place, book, memory, workers, mps)
            if not why:
                report(f"{workers} worker(s), batch size {job.scaling_batch}, MPS {'on' if mps else 'off'}")
                try:
                    run = measure_scale(job, place, workers, mps=mps)
                except NoMemory as error:
                    why = error.what
                except NotReadyError as error:
                    # One alone has loaded, so it is their number: the host's memory, clients of somebody else's.
                    why = error.what
                else:
                    book.scaling.append(run)
                    _note_spread(book, run)
            if why:
                state = f" with MPS {'on' if mps else 'off'}" if job.gpu else ""
                book.notes.append(f"{workers} workers and more{state} are left out: {why}")
                break


def _note_spread(book: Book, run: ScaleRun) -> None:
    spread = (run.high - run.low) / run.requests_per_second
    if spread > _STEADY:
        state = "on" if run.mps else "off"
        book.notes.append(
            f"{run.workers} worker(s) with MPS {state} were not steady: windows differ by {spread:.0%}. "
            "Measure longer (--seconds), or on a quieter machine."
        )


def _fits(job: Job, book: Book) -> bool:
    return any(run.batch_size == job.scaling_batch for run in book.runs)


def _too_many(job: Job, place: Stage, book: Book, memory: GpuMemory | None, workers: int, mps: bool) -> str:
    """Why so many workers cannot run, as a sentence; empty if they can."""
    if mps and place.cap is not None and workers > place.cap:
        return f"the MPS server of this GPU takes {place.cap} clients."
    if not mps and job.gpu is not None and job.gpu.compute_mode == "Exclusive_Process" and (job.mps or workers > 1):
        return "the GPU is in compute mode Exclusive_Process, in which only MPS lets several processes use it."
    run = next(run for run in book.runs if run.batch_size == job.scaling_batch)
    each = run.context + run.weights + run.peak
    if memory is not None and workers * each > memory.total() - memory.used():
        free = (memory.total() - memory.used()) / 2**30
        return f"at {each / 2**30:.2f} GiB each they need more than the {free:.1f} GiB that are free."
    return ""
