"""One arm served by ts-mps through its own command line, from a fresh start to nothing left."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ts_mps.bench import proof
from ts_mps.bench.commands import call
from ts_mps.bench.lit import LitServer
from ts_mps.bench.proof import Witness
from ts_mps.bench.records import Arm
from ts_mps.bench.site import LeftRunning, Place, ServerError, Site
from ts_mps.bench.stock import StockServer
from ts_mps.guardian.state import State, load_state
from ts_mps.guardian.status import look
from ts_mps.paths import Home
from ts_mps.torchserve.transport import call_url

#: Seconds beyond the time to be ready for preflight checks, and for undoing a start that failed.
_GRACE_S = 60.0
_STOP_S = 120.0
_INSTANCE = "default"


class Server(Protocol):
    """One arm, served. Made without a process; :meth:`start` first, :meth:`end` in any case."""

    def start(self) -> None:
        """Start everything afresh and wait until all workers are READY.

        Raises:
            TsMpsError: It does not start; what was started is stopped by :meth:`end`.
        """

    def url(self) -> str:
        """Where requests go, such as ``http://127.0.0.1:8080``."""

    def frontend(self) -> tuple[int, ...]:
        """Pids of the processes that take the requests and hand them to the workers."""

    def witness(self) -> Witness:
        """Workers and clients right now.

        Raises:
            TsMpsError: The server or its daemon does not answer.
        """

    def logs(self) -> str:
        """The ends of all logs."""

    def end(self) -> None:
        """Stop everything and remove the files.

        Raises:
            LeftRunning: Something could not be stopped.
        """


def make_server(site: Site, arm: Arm) -> Server:
    """The server of an arm, by its engine.

    Raises:
        ValueError: There is no such engine.
        OSError: Its folder cannot be made or filled.
    """
    if arm.engine == "ts-mps":
        return TsMpsServer(site, arm)
    if arm.engine == "torchserve":
        return StockServer(site, arm)
    if arm.engine == "litserve":
        return LitServer(site, arm)
    raise ValueError(f"There is no engine {arm.engine}.")


class TsMpsServer:
    """``ts-mps start`` with a runtime folder, daemon and ports of its own.

    Args:
        site: What all servers of the study have in common.
        arm: What is served.
    """

    def __init__(self, site: Site, arm: Arm) -> None:
        self._place = Place(site, arm)
        self._home = Home(self._place.root / "h")

    def start(self) -> None:
        """As :meth:`Server.start`."""
        place, site = self._place, self._place.site
        settings = place.root / "ts-mps.toml"
        settings.write_text(_settings(site.model, place.arm))
        arguments = [
            "start",
            "--json",
            *("--mps", "on" if place.arm.mps else "off"),
            *("--model-store", str(place.store)),
            *("--ts-config", str(place.config)),
            *("--settings", str(settings)),
            *("--wait-timeout", f"{site.ready_timeout:g}"),
            *("--models", f"{site.model}={site.model}"),
            "--ncs",
            "--disable-token-auth",
        ]
        try:
            done = self._ts_mps(arguments, site.ready_timeout + _GRACE_S)
        except subprocess.TimeoutExpired as error:
            raise ServerError(f"ts-mps start did not end in {site.ready_timeout + _GRACE_S:g} s.") from error
        if done.returncode:
            raise _why_not(done)

    def url(self) -> str:
        """As :meth:`Server.url`."""
        return call_url(self._state().endpoints.inference)

    def frontend(self) -> tuple[int, ...]:
        """As :meth:`Server.frontend`."""
        java = self._state().java
        return () if java is None else (java.pid,)

    def witness(self) -> Witness:
        """As :meth:`Server.witness`."""
        status = look(self._home.instance(_INSTANCE))
        if status is None:
            raise ServerError("ts-mps has left no state.")
        ready = tuple(sorted(worker.pid for worker in status.workers if worker.state == "READY"))
        site = self._place.site
        if self._place.arm.mps:
            pipes = {Path(gpu.pipe) for gpu in self._state().gpus if gpu.pipe}
            return Witness(ready, proof.listed_clients(pipes), status.problems)
        said = {worker.pid for worker in status.workers if worker.attached}
        found = proof.clients_anywhere([site.gpu.uuid] if site.gpu else [])
        return Witness(ready, found | said, status.problems)

    def logs(self) -> str:
        """As :meth:`Server.logs`."""
        return self._place.logs()

    def end(self) -> None:
        """As :meth:`Server.end`."""
        try:
            done = self._ts_mps(["stop", "--drain-timeout", "2"], _STOP_S)
            left = (done.stderr or done.stdout).strip() if done.returncode else ""
        except subprocess.TimeoutExpired:
            left = f"ts-mps stop did not end in {_STOP_S:g} s"
        if left:
            # Its files stay: without them nobody could stop it any more.
            again = f"TS_MPS_HOME={self._home.root} {sys.executable} -m ts_mps stop"
            raise LeftRunning("A server of the study could not be stopped.", f"Stop it with: {again}", left)
        self._place.end()

    def _state(self) -> State:
        state = load_state(self._home.instance(_INSTANCE))
        if state is None:
            raise ServerError("ts-mps has left no state.")
        return state

    def _ts_mps(self, arguments: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        site = self._place.site
        # The worker takes its own from here on; an arm on the CPU must not find a GPU.
        visible = site.gpu.uuid if site.gpu and self._place.arm.device == "gpu" else ""
        return call(
            [sys.executable, "-m", "ts_mps", *arguments],
            cores=site.cores,
            folder=self._place.work,
            environ={
                **self._place.environment(),
                "TS_MPS_HOME": str(self._home.root),
                "CUDA_VISIBLE_DEVICES": visible,
            },
            timeout=timeout,
        )


def _settings(model: str, arm: Arm) -> str:
    """``ts-mps.toml`` of an arm; without a percentage too, so that no other settings file is found."""
    if arm.thread_percentage is None:
        return ""
    return f"[models.{json.dumps(model)}]\nthread_percentage = {arm.thread_percentage:g}\n"


def _why_not(done: subprocess.CompletedProcess[str]) -> ServerError:
    """The sentence that ``start --json`` printed, else the end of what it said."""
    try:
        said = json.loads(done.stdout)
        return ServerError(str(said["error"]), str(said["remedy"]), str(said["details"]))
    except (ValueError, KeyError, TypeError):
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        return ServerError(f"ts-mps start ended with exit code {done.returncode}.", details=end)
