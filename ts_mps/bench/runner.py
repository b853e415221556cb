"""One run: a fresh server, the proof of what its workers are, a load, the proof again, and nothing left."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timezone

import psutil

from ts_mps.bench.loading import Send
from ts_mps.bench.proof import why_changed, why_void
from ts_mps.bench.records import Arm, Load, LoadResult, Run
from ts_mps.bench.sampling import Sampler
from ts_mps.bench.schedule import Turn
from ts_mps.bench.server import Server, make_server
from ts_mps.bench.site import LeftRunning, Site
from ts_mps.bench.telemetry import GpuWatch, counted
from ts_mps.bench.usage import busy_cores, cpu_seconds
from ts_mps.errors import TsMpsError
from ts_mps.profile.interrupts import uninterrupted

#: Starts the processes of a load to an arm; what is entered sends the load, and none of them is left afterwards.
Generate = Callable[[Arm, Load], AbstractContextManager[Send]]


class Runner:
    """Makes runs.

    Args:
        site: What all servers of the study have in common.
        generate: Makes the load; raises TsMpsError where the generator itself fails.
        serve: Makes the server of an arm.
    """

    def __init__(self, site: Site, generate: Generate, serve: Callable[[Site, Arm], Server] = make_server) -> None:
        self._site, self._generate, self._serve = site, generate, serve

    def run(self, turn: Turn, arm: Arm, load: Load) -> Run:
        """Make one run. What goes wrong with it stands in the run.

        Raises:
            LeftRunning: Its server could not be stopped.
            KeyboardInterrupt: Somebody wants to end; the server is stopped, and there is no run.
        """
        began = time.monotonic()
        run = Run(
            block=turn.block,
            position=turn.position,
            arm=arm.name,
            started=datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
            result=None,
            server_limit=len(self._site.cores),
        )
        try:
            server = self._serve(self._site, arm)
        except (OSError, ValueError) as error:
            return replace(run, failure=f"The server could not be prepared: {error}")
        try:
            try:
                # The generator starts beside the server, on cores of its own, and waits to be told the address.
                with self._generate(arm, load) as send:
                    server.start()
                    run = replace(run, ready_seconds=round(time.monotonic() - began, 3))
                    return self._measure(run, server, arm, load, send)
            except LeftRunning:
                raise
            except (TsMpsError, OSError, psutil.Error) as error:
                details = error.details if isinstance(error, TsMpsError) else ""
                return replace(run, failure=str(error), details=_joined(details, server.logs()))
        finally:
            # A Ctrl-C must not cut the end of a server short; it is heard right after.
            with uninterrupted():
                server.end()

    def _measure(self, run: Run, server: Server, arm: Arm, load: Load, send: Send) -> Run:
        before = server.witness()
        if failure := why_void(arm, before, "before the load"):
            return replace(run, clients=before.proven, failure=failure, details=server.logs())
        frontend = server.frontend()
        gpus = [self._site.gpu.uuid] if self._site.gpu else []
        with (
            GpuWatch(gpus) as watch,
            Sampler(watch.look) as telemetry,
            Sampler(lambda: cpu_seconds(frontend, before.workers)) as cpu,
        ):
            result = send(server.url())
        begin, end = result.began, result.began + load.seconds
        frontend_cores, worker_cores = busy_cores(cpu.samples(), begin, end)
        run = replace(
            run,
            result=result,
            frontend_cores=round(frontend_cores, 3),
            worker_cores=round(worker_cores, 3),
            samples=counted(telemetry.samples(), begin, end),
        )
        try:
            after = server.witness()
        except TsMpsError as error:
            failure = f"After the load the server did not answer any more: {error}"
            return replace(run, failure=failure, details=server.logs())
        failure = why_void(arm, after, "after the load") or why_changed(before, after) or _why_empty(result)
        return replace(
            run,
            clients=min(before.proven, after.proven),
            failure=failure,
            details=server.logs() if failure else "",
        )


def _why_empty(result: LoadResult) -> str:
    if result.answered or result.void:
        return ""
    first = "; ".join(f"{name}: {text}" for name, text in result.first_errors.items())
    return f"None of {result.sent} requests was answered as it should be. {first}".strip()


def _joined(*texts: str) -> str:
    return "\n".join(text for text in texts if text)
