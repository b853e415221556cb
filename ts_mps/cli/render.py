"""Results as text for people or JSON for programs. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from ts_mps.errors import TsMpsError
from ts_mps.guardian.instance import RESULT_VERSION, Status, WorkerStatus
from ts_mps.worker_records import Share


class _Console(Console):
    """rich ends the process where nobody reads its output any more; a guardian in front must serve on."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


#: A table that goes into a file or a pipe is not cut to the width of a terminal that is not there.
_OUT = _Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)
_ERR = _Console(stderr=True, highlight=False, soft_wrap=True)


def err_console() -> Console:
    """The console on stderr, for a progress display."""
    return _ERR


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, indent=1), flush=True)


def show(*renderables: RenderableType) -> None:
    """Text or tables on stdout."""
    for renderable in renderables:
        _OUT.print(renderable)


def print_error(error: TsMpsError, *, as_json: bool = False) -> None:
    """The sentence, the remedy and the evidence, on stderr; with ``--json`` also as an object on stdout."""
    if as_json:
        print_json(
            {
                "version": RESULT_VERSION,
                "error": error.what,
                "remedy": error.remedy,
                "details": error.details,
                "exit_code": error.exit_code,
            }
        )
    _ERR.print(f"[bold red]ts-mps:[/] {escape(error.what)}")
    if error.remedy:
        _ERR.print(escape(error.remedy))
    if error.details:
        _ERR.print(escape(error.details), style="dim")


def note(sentence: str) -> None:
    """Something worth knowing, on stderr."""
    _ERR.print(f"[yellow]ts-mps:[/] {escape(sentence)}")


def progress() -> Callable[[str], None]:
    """A sink for progress: one line that is overwritten on a terminal, plain lines elsewhere."""
    began = time.monotonic()

    def report(text: str) -> None:
        _ERR.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {escape(text)}")

    return report


def status_text(status: Status) -> RenderableType:
    """An instance as text."""
    verdict = "[green]as planned[/]" if status.as_planned else "[bold red]not as planned[/]"
    head = f"[bold]{escape(status.instance)}[/]: {status.phase}, {verdict}, since {_clock(status.since)}"
    parts: list[RenderableType] = [head, escape(status.mps_why)]
    if status.gpus:
        parts.append(_gpu_table(status))
    if status.workers:
        parts.append(_worker_table(status.workers))
    parts.append(
        f"inference {status.inference}   management {status.management}   metrics {status.metrics or 'off'}\n"
        f"config    {escape(status.config)}\n"
        f"from      {escape(status.config_source)}\n"
        f"logs      {escape(status.folder)}/logs"
    )
    parts += [f"[red]problem[/]   {escape(problem)}" for problem in status.problems]
    parts += [
        f"[yellow]not loaded[/] {_clock(f.time)} worker {f.pid} of {escape(f.model)}: {escape(f.what)}"
        for f in status.failures
    ]
    return Group(*parts)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _gpu_table(status: Status) -> Table:
    table = _table("GPU", "NAME", "UUID", "DAEMON", "SERVER", "CLIENTS")
    for gpu in status.gpus:
        clients = "-" if gpu.cap is None else f"{gpu.clients} of {gpu.cap}"
        table.add_row(str(gpu.index), gpu.name, gpu.uuid[:12], gpu.daemon, gpu.server, clients)
    return table


def _worker_table(workers: tuple[WorkerStatus, ...]) -> Table:
    table = _table("MODEL", "VERSION", "PID", "GPU", "SLOT", "STATE", "MPS CLIENT", "SMS", "LIMITS", "CORES", "SINCE")
    for worker in workers:
        attached = {None: "-", True: "yes", False: "[bold red]NO[/]"}[worker.attached]
        slot = "-" if worker.slot is None else f"{worker.slot}{'' if worker.planned else ' (extra)'}"
        table.add_row(
            escape(worker.model),
            escape(worker.version),
            str(worker.pid),
            "cpu" if worker.gpu is None else str(worker.gpu),
            slot,
            worker.state,
            attached,
            _sms(worker),
            _limits(worker.got),
            _ranges(worker.got.cores) if worker.got else "-",
            "-" if worker.since is None else _clock(worker.since),
        )
    return table


def _sms(worker: WorkerStatus) -> str:
    if worker.got is None or worker.got.sms is None:
        return "-"
    if worker.expected_sms is None or worker.got.sms == worker.expected_sms:
        return str(worker.got.sms)
    return f"{worker.got.sms} (planned {worker.expected_sms})"


def _limits(got: Share | None) -> str:
    """Thread percentage, memory and priority, as far as there are such limits."""
    if got is None:
        return "-"
    words = []
    if got.thread_percentage is not None:
        words.append(f"{got.thread_percentage:g} %{' checked' if got.checked is not None else ''}")
    if got.memory_limit is not None:
        words.append(f"{got.memory_limit / 2**30:.1f} GiB")
    if got.priority is not None:
        words.append("low priority" if got.priority else "normal priority")
    return ", ".join(words) or "-"


def _ranges(cores: tuple[int, ...]) -> str:
    """Ascending numbers as Linux lists cores: "0-3,8"."""
    parts: list[list[int]] = []
    for core in cores:
        if parts and core == parts[-1][-1] + 1:
            parts[-1].append(core)
        else:
            parts.append([core])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
