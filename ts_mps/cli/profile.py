"""``ts-mps profile``: measure one model as TorchServe would run it, for the planner."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ts_mps.cli.interruptible import interruptible
from ts_mps.cli.output import check_writable, write_result
from ts_mps.cli.profile_options import parser
from ts_mps.cli.render import note, print_json, progress, show
from ts_mps.errors import MpsError, PreflightError, TsMpsError
from ts_mps.gpu.inventory import Gpu, Inventory, read_inventory
from ts_mps.gpu.visible import select_gpus
from ts_mps.guardian.choice import MpsChoice, choose_mps
from ts_mps.plan.profile import Profile, ScaleRun
from ts_mps.profile.job import Book, Job
from ts_mps.profile.measure import check_archive, measure
from ts_mps.profile.payload import read_payloads
from ts_mps.torchserve.archives import read_archive
from ts_mps.torchserve.digest import content_digest

__all__ = ["main", "parser"]

_MIB = 2**20
_WHAT = "The profile"


def main(arguments: Sequence[str]) -> int:
    """Run the verb. What was measured before a failure or Ctrl-C is written, marked as incomplete.

    Returns:
        0; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    Raises:
        TsMpsError: Nothing can be measured, or a measurement failed; nothing that was started is left.
    """
    options = parser().parse_args(arguments)
    job = _job(options)
    output: Path = options.output or Path(f"{job.model}.profile.json")
    check_writable(output, _WHAT)
    book = Book()
    try:
        with interruptible() as caught:
            measure(job, book, os.environ, progress())
    except (TsMpsError, OSError) as error:
        book.incomplete = f"It was broken off: {error}"
        _keep(book, job, output)
        raise
    except KeyboardInterrupt:
        book.incomplete = "It was interrupted."
        _keep(book, job, output)
        return 128 + (caught[0] if caught else signal.SIGINT)
    profile = book.profile(job)
    write_result(output, _WHAT, profile.as_json())
    if options.json:
        print_json(profile.as_json())
    else:
        _render(profile)
    for sentence in book.notes:
        note(sentence)
    note(f"The profile is in {output}.")
    return 0


def _job(options: argparse.Namespace) -> Job:
    archive = read_archive(Path(options.archive))
    check_archive(archive)
    requests = read_payloads(options.payload, options.content_type)
    inventory = read_inventory()
    on_cpu = (archive.config or {}).get("deviceType") == "cpu"
    gpu = None if on_cpu else _gpu(options.gpu, inventory)
    if on_cpu and options.mps == "on":
        raise MpsError(f"--mps on, but {archive.path} says deviceType: cpu.", "Leave --mps out.")
    # Without a GPU this refuses --mps on and makes "off" of "auto".
    mps = MpsChoice(False, "") if on_cpu else choose_mps(options.mps, inventory, (gpu,) if gpu else (), os.environ)
    scaling_batch = options.scaling_batch or max(1, archive.integer("batchSize") or 1)
    return Job(
        archive=archive,
        sha256=content_digest(archive.path),
        files=tuple(options.payload),
        content_type=options.content_type,
        requests=requests,
        batch_sizes=tuple(sorted({*options.batch_sizes, scaling_batch})),
        scaling_batch=scaling_batch,
        workers=_default_workers() if options.workers is None else options.workers,
        percentages=options.percentages if mps.on else (),
        seconds=options.seconds,
        repeats=options.repeats,
        gap=options.gap_ms / 1000,
        gpu=gpu,
        driver=inventory.driver_version,
        mps=mps.on,
        control_version=mps.version,
        adopted_pipe=mps.adopted_pipe,
        shared_gpu=options.shared_gpu,
    )


def _gpu(index: int | None, inventory: Inventory) -> Gpu | None:
    """The GPU that was asked for, else the first visible one; None on a machine without any.

    Raises:
        PreflightError: There is no such GPU, or it is in MIG mode.
    """
    visible = select_gpus(inventory, os.environ.get("CUDA_VISIBLE_DEVICES"), None)
    found = visible if index is None else tuple(gpu for gpu in inventory.gpus if gpu.index == index)
    if index is not None and not found:
        has = ", ".join(f"{gpu.index} = {gpu.name}" for gpu in inventory.gpus)
        raise PreflightError(
            f"--gpu {index}: this machine has no such GPU.", f"It has: {has}." if has else inventory.problem
        )
    if found and found[0].mig_enabled:
        raise PreflightError(
            f"GPU {found[0].index} ({found[0].name}) is in MIG mode, in which ts-mps profile cannot measure.",
            "Choose another one with --gpu INDEX.",
        )
    return found[0] if found else None


def _default_workers() -> tuple[int, ...]:
    """No more than the planner would give them cores."""
    cores = len(os.sched_getaffinity(0))
    return tuple(number for number in (1, 2, 4, 8, 16) if number <= cores)


def _keep(book: Book, job: Job, output: Path) -> None:
    if book.runs:
        write_result(output, _WHAT, book.profile(job).as_json())
        note(f"What was measured until then is in {output}, marked as incomplete.")


def _render(profile: Profile) -> None:
    show(
        f"[bold]{escape(profile.model)}[/] on {escape(profile.gpu)}" + (f" ({profile.sms} SMs)" if profile.sms else "")
    )
    show(_runs_table(profile))
    if profile.scaling:
        show(f"Workers at once, batch size {profile.scaling[0].batch_size}, requests/s \\[lowest-highest]:")
        show(_scaling_table(profile.scaling))


def _runs_table(profile: Profile) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ("batch", "threads %", "SMs", "ms median \\[10-90 %]", "requests/s", "GPU ms", "host ms", "CPU ms")
    for name in (*names, "context MiB", "weights MiB", "peak MiB"):
        table.add_column(name, justify="right")
    for run in profile.runs:
        gpu, cpu = run.gpu_milliseconds, run.cpu_milliseconds
        table.add_row(
            str(run.batch_size),
            "-" if run.percentage is None else f"{run.percentage:g}",
            str(run.sms or "-"),
            f"{run.milliseconds:.2f} \\[{run.low:.2f}-{run.high:.2f}]",
            f"{run.batch_size * 1000 / (run.milliseconds + profile.gap_milliseconds):.0f}",
            "-" if gpu is None else f"{gpu:.2f}",
            "-" if gpu is None else f"{max(0.0, run.milliseconds - gpu):.2f}",
            "-" if cpu is None else f"{cpu:.2f}",
            *(f"{size / _MIB:.0f}" if run.context else "-" for size in (run.context, run.weights, run.peak)),
        )
    return table


def _scaling_table(scaling: Sequence[ScaleRun]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("workers", "MPS off", "MPS on", "on/off"):
        table.add_column(name, justify="right")
    found = {(run.workers, run.mps): run for run in scaling}
    for workers in sorted({run.workers for run in scaling}):
        off, on = found.get((workers, False)), found.get((workers, True))
        ratio = f"{on.requests_per_second / off.requests_per_second:.2f}" if on and off else "-"
        table.add_row(str(workers), _rate(off), _rate(on), ratio)
    return table


def _rate(run: ScaleRun | None) -> str:
    return "-" if run is None else f"{run.requests_per_second:.0f} \\[{run.low:.0f}-{run.high:.0f}]"
