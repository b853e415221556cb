"""One arm served by LitServe, which takes the archive's own handler; under MPS by a daemon beside it."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path

import requests

from ts_mps.bench.beside import Beside
from ts_mps.bench.copies import BATCH_DELAY
from ts_mps.bench.family import Family
from ts_mps.bench.proof import Witness
from ts_mps.bench.records import Arm
from ts_mps.bench.site import Place, ServerError, Site
from ts_mps.files import last_lines
from ts_mps.profile.interrupts import uninterrupted
from ts_mps.torchserve import properties
from ts_mps.torchserve.addresses import address
from ts_mps.torchserve.transport import call_url

_POLL_S = 0.25
_ANSWER_S = 5.0


class LitServer:
    """LitServe with the arm's workers and batch size; a daemon for it is started where the arm says MPS.

    Args:
        site: What all servers of the study have in common.
        arm: What is served.
    """

    def __init__(self, site: Site, arm: Arm) -> None:
        self._place = Place(site, arm)
        self._beside = Beside(self._place)
        self._family: Family | None = None
        self._address = address(properties.read(self._place.config).values, "inference_address")
        #: Each worker leaves a file with its pid there once its model is loaded: LitServe itself tells no pids.
        self._loaded = self._place.root / "loaded"
        self._loaded.mkdir()

    def start(self) -> None:
        """As :meth:`ts_mps.bench.server.Server.start`."""
        place, site, arm = self._place, self._place.site, self._place.arm
        command = [
            sys.executable,
            *("-m", "ts_mps.bench.peers.litserve_server", str(place.store / site.model)),
            *("--port", str(self._address.port)),
            *("--path", f"/predictions/{site.model}"),
            *("--workers", str(arm.workers)),
            *("--batch-size", str(arm.batch_size)),
            *("--batch-delay-ms", arm.options.get("max_batch_delay", str(BATCH_DELAY))),
            *("--content-type", site.content_type),
            *("--accelerator", "cuda" if arm.device == "gpu" else "cpu"),
            *("--loaded", str(self._loaded)),
        ]
        environ = self._beside.environment()
        console = place.root / "litserve.out"
        with uninterrupted():
            self._family = Family(command, cores=site.cores, folder=place.work, environ=environ, console=console)
        self._wait_ready(self._family, console)

    def url(self) -> str:
        """As :meth:`ts_mps.bench.server.Server.url`."""
        return call_url(self._address)

    def frontend(self) -> tuple[int, ...]:
        """As :meth:`ts_mps.bench.server.Server.frontend`: HTTP servers and the queue between them and the workers."""
        workers = self._workers()
        living = self._family.living() if self._family is not None else ()
        return tuple(process.pid for process in living if process.pid not in workers)

    def witness(self) -> Witness:
        """As :meth:`ts_mps.bench.server.Server.witness`."""
        return Witness(self._workers(), self._beside.clients())

    def logs(self) -> str:
        """As :meth:`ts_mps.bench.server.Server.logs`."""
        return self._place.logs()

    def end(self) -> None:
        """As :meth:`ts_mps.bench.server.Server.end`; the daemon goes when all its clients have gone."""
        if self._family is not None:
            self._family.end(self._family.pid)
        self._beside.end()
        self._place.end()

    def _wait_ready(self, family: Family, console: Path) -> None:
        site, wanted = self._place.site, self._place.arm.workers
        deadline = time.monotonic() + site.ready_timeout
        while time.monotonic() < deadline:
            code = family.exit_code()
            if code is not None:
                raise ServerError(f"LitServe ended by itself with exit code {code}.", details=last_lines(console))
            # LitServe listens as soon as one of its workers has loaded, so both are asked.
            if len(self._workers()) == wanted and self._healthy():
                return
            time.sleep(_POLL_S)
        loaded = len(self._workers())
        raise ServerError(f"{loaded} of {wanted} workers were ready after {site.ready_timeout:g} s.")

    def _workers(self) -> tuple[int, ...]:
        """Pids of the workers that have loaded and live."""
        told = {int(file.name) for file in self._loaded.iterdir()}
        living = self._family.living() if self._family is not None else ()
        return tuple(sorted(process.pid for process in living if process.pid in told))

    def _healthy(self) -> bool:
        with suppress(requests.RequestException), requests.Session() as session:
            session.trust_env = False  # no proxy between us and the server
            return session.get(f"{self.url()}/health", timeout=_ANSWER_S).ok
        return False
