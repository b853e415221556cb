"""One arm served by a server that is not ts-mps, as its users start it; under MPS by a daemon beside it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from ts_mps.bench.beside import Beside
from ts_mps.bench.family import Family
from ts_mps.bench.proof import Witness
from ts_mps.bench.records import Arm
from ts_mps.bench.site import Place, ServerError, Site
from ts_mps.files import last_lines
from ts_mps.profile.interrupts import uninterrupted
from ts_mps.torchserve import properties
from ts_mps.torchserve.addresses import address
from ts_mps.torchserve.client import ApiError
from ts_mps.torchserve.transport import call_url


class PeerServer(ABC):
    """A :class:`ts_mps.bench.server.Server`; a daemon for it is started where the arm says MPS.

    Args:
        site: What all servers of the study have in common.
        arm: What is served.
    """

    #: What messages and its console's file call it.
    name: str
    #: Seconds between two looks while it starts.
    poll_s: float

    def __init__(self, site: Site, arm: Arm) -> None:
        self._place = Place(site, arm)
        self._beside = Beside(self._place)
        self._family: Family | None = None
        self._settings = properties.read(self._place.config).values
        self._inference = address(self._settings, "inference_address")

    @abstractmethod
    def _command(self, environ: Mapping[str, str]) -> Sequence[str]:
        """What starts it.

        Raises:
            ServerError: It is not installed.
        """

    @abstractmethod
    def _workers(self) -> tuple[int, ...]:
        """Pids of the workers that are ready, ascending.

        Raises:
            ApiError: It does not answer.
        """

    @abstractmethod
    def _head(self) -> int | None:
        """Pid of the process that ends the others when it is asked to end; None where there is none."""

    @abstractmethod
    def frontend(self) -> tuple[int, ...]:
        """As :meth:`ts_mps.bench.server.Server.frontend`."""

    def start(self) -> None:
        """As :meth:`ts_mps.bench.server.Server.start`."""
        place = self._place
        environ = self._environment()
        command, console = self._command(environ), place.root / f"{self.name}.out"
        with uninterrupted():
            self._family = Family(command, cores=place.site.cores, folder=place.work, environ=environ, console=console)
        self._wait_ready(self._family, console)

    def url(self) -> str:
        """As :meth:`ts_mps.bench.server.Server.url`."""
        return call_url(self._inference)

    def witness(self) -> Witness:
        """As :meth:`ts_mps.bench.server.Server.witness`."""
        return Witness(self._workers(), self._beside.clients())

    def logs(self) -> str:
        """As :meth:`ts_mps.bench.server.Server.logs`."""
        return self._place.logs()

    def end(self) -> None:
        """As :meth:`ts_mps.bench.server.Server.end`; the daemon goes when all its clients have gone."""
        if self._family is not None:
            self._family.end(self._head())
        self._beside.end()
        self._place.end()

    def _environment(self) -> dict[str, str]:
        return self._beside.environment()

    def _listens(self) -> bool:
        """Whether it takes requests, where workers that are ready do not say so."""
        return True

    def _living(self) -> Sequence[psutil.Process]:
        return self._family.living() if self._family is not None else ()

    def _wait_ready(self, family: Family, console: Path) -> None:
        site, wanted = self._place.site, self._place.arm.workers
        deadline = time.monotonic() + site.ready_timeout
        ready: Sequence[int] = ()
        while time.monotonic() < deadline:
            code = family.exit_code()
            if code is not None:
                raise ServerError(f"{self.name} ended by itself with exit code {code}.", details=last_lines(console))
            with suppress(ApiError):
                ready = self._workers()
            if len(ready) == wanted and self._listens():
                return
            time.sleep(self.poll_s)
        raise ServerError(f"{len(ready)} of {wanted} workers were ready after {site.ready_timeout:g} s.")
