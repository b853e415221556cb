"""The display of ``ts-mps status --watch``: readiness and live throughput, with or without a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from ts_mps.cli.render import status_text
from ts_mps.errors import TsMpsError
from ts_mps.files import read_json
from ts_mps.guardian.readiness import Seen, not_ready, see
from ts_mps.guardian.status import look
from ts_mps.guardian.throughput import Throughput, throughput
from ts_mps.paths import InstancePaths
from ts_mps.plan.model import Plan
from ts_mps.torchserve.counters import CounterReader, Counters
from ts_mps.torchserve.endpoints import Endpoints

#: Seconds between two readings of the counters.
REDRAW_EVERY = 2.0
#: Seconds between two full looks: for each, TorchServe starts one nvidia-smi per worker.
LOOK_EVERY = 10.0
#: Version of the JSON form of one reading.
WATCH_VERSION = 1


@dataclass(frozen=True)
class Reading:
    """One reading.

    Attributes:
        at: Seconds since the epoch.
        phase: The instance's phase.
        not_ready: Why it is not ready, a sentence each.
        models: Throughput since the reading before.
        trouble: Why there is no throughput, as a sentence; empty if there is.
    """

    at: float
    phase: str
    not_ready: tuple[str, ...]
    models: tuple[Throughput, ...] = ()
    trouble: str = ""

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {"version": WATCH_VERSION, "ready": not self.not_ready, **asdict(self)}


class Reader:
    """Reads an instance again and again, also one that is stopped and started meanwhile.

    Args:
        paths: The instance.
    """

    def __init__(self, paths: InstancePaths) -> None:
        self._paths = paths
        self._where: Endpoints | None = None
        self._counters: CounterReader | None = None
        self._before: Counters | None = None

    def read(self) -> Reading:
        """The next reading."""
        seen = see(self._paths)
        reading = Reading(seen.now, seen.state.phase if seen.state else "unknown", not_ready(seen))
        try:
            after = self._read(seen)
        except TsMpsError as error:
            self._before = None
            return replace(reading, trouble=str(error))
        before, self._before = self._before, after
        models = throughput(before or after, after, self._planned())
        return replace(reading, models=models)

    def close(self) -> None:
        """Close the connection."""
        if self._counters is not None:
            self._counters.close()

    def _read(self, seen: Seen) -> Counters:
        if seen.state is None or not seen.java:
            raise TsMpsError("No throughput: TorchServe is not running.")
        where = seen.state.endpoints
        if where.metrics is None:
            raise TsMpsError("No throughput: enable_metrics_api=false turns TorchServe's metrics off.")
        if self._counters is None or where != self._where:
            self.close()
            self._where, self._counters = where, CounterReader(where.metrics, where.certificate)
            self._before = None
        return self._counters.read()

    def _planned(self) -> Collection[str]:
        with suppress(ValueError):
            return {slot.model for slot in Plan.from_json(read_json(self._paths.plan) or {}).slots}
        return ()


def watch(paths: InstancePaths, *, as_json: bool) -> None:
    """Show readings until Ctrl-C: in place on a terminal, else a line for each model, or with ``as_json`` an object."""
    reader = Reader(paths)
    try:
        if sys.stdout.isatty() and not as_json:
            _in_place(paths, reader)
        reader.read()
        while True:
            time.sleep(REDRAW_EVERY)
            reading = reader.read()
            for line in [json.dumps(reading.as_json())] if as_json else lines(reading):
                print(line, flush=True)
    except KeyboardInterrupt:
        return
    finally:
        reader.close()


def _in_place(paths: InstancePaths, reader: Reader) -> None:
    shown: RenderableType = ""
    next_look = 0.0
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            if time.monotonic() >= next_look:
                status = look(paths)
                shown = status_text(status) if status is not None else shown
                next_look = time.monotonic() + LOOK_EVERY
            live.update(Group(shown, *rendered(reader.read())), refresh=True)
            time.sleep(REDRAW_EVERY)


def rendered(reading: Reading) -> Sequence[RenderableType]:
    """A reading below an instance's status."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("MODEL", "REQUESTS/S", "MEAN MS", "QUEUE MS", "REQUESTS"):
        table.add_column(column, no_wrap=True, justify="left" if column == "MODEL" else "right")
    for model in reading.models:
        row = (f"{model.per_second:.1f}", _ms(model.mean_ms), _ms(model.queue_ms), f"{model.total:,}")
        table.add_row(escape(model.model), *row)
    clock = time.strftime("%H:%M:%S", time.localtime(reading.at))
    ready = "[green]ready[/]" if not reading.not_ready else "[bold red]not ready[/]"
    parts: list[RenderableType] = ["", f"{clock}  {ready}"]
    parts += [f"[red]not ready[/] {escape(reason)}" for reason in reading.not_ready]
    parts.append(f"[yellow]{escape(reading.trouble)}[/]" if reading.trouble else table)
    return parts


def lines(reading: Reading) -> list[str]:
    """A reading where there is no terminal."""
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(reading.at))
    ready = "ready" if not reading.not_ready else f"not ready: {' '.join(reading.not_ready)}"
    found = [f"{clock}  {reading.phase}, {ready}"]
    found += [
        f"{clock}  {model.model}  {model.per_second:.1f} requests/s  mean {_ms(model.mean_ms)} ms  "
        f"queue {_ms(model.queue_ms)} ms  {model.total} in all"
        for model in reading.models
    ]
    return found + ([f"{clock}  {reading.trouble}"] if reading.trouble else [])


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
