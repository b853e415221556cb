"""What every server of a study has in common, and the folder that each one gets for itself."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ts_mps
from ts_mps.bench.claims import Ports
from ts_mps.bench.copies import arm_archive
from ts_mps.bench.records import Arm
from ts_mps.errors import TsMpsError
from ts_mps.files import last_lines
from ts_mps.gpu.inventory import Gpu

_ADDRESSES = ("inference_address", "management_address", "metrics_address")
_GRPC_PORTS = ("grpc_inference_port", "grpc_management_port")
#: Variables that would let the user's own servers, daemons or shares into an arm.
_UNWANTED = ("TS_", "CUDA_MPS_", "LOG_LOCATION", "METRICS_LOCATION", "CUDA_VISIBLE_DEVICES")
_LOG_LINES = 20


class ServerError(TsMpsError):
    """A server of a study could not be started, or did not do what it had to."""


class LeftRunning(TsMpsError):
    """A server could not be stopped; whatever were measured beside it would be wrong."""


@dataclass(frozen=True)
class Site:
    """What every server of a study has in common.

    Attributes:
        model: Name under which the model is served.
        archive: Its archive as a folder.
        gpu: The GPU; None for a study on the CPU.
        cores: Host cores of server and workers.
        environ: The user's environment.
        ready_timeout: Seconds until all workers must be ready.
        port: Port of REST inference; None for any that is free.
        content_type: Of every request; empty for none. LitServe has to know it before the first one.
    """

    model: str
    archive: Path
    gpu: Gpu | None
    cores: tuple[int, ...]
    environ: Mapping[str, str]
    ready_timeout: float = 300.0
    port: int | None = None
    content_type: str = ""


class Place:
    """A folder with the archive of one arm, a configuration with free ports, and an environment; gone with :meth:`end`.

    It is in /tmp, because sockets lie in it and their paths must be short.

    Args:
        site: The study's.
        arm: The arm that is served.

    Raises:
        OSError: The folder cannot be made or filled.
    """

    def __init__(self, site: Site, arm: Arm) -> None:
        self.site, self.arm = site, arm
        self.root = Path(tempfile.mkdtemp(prefix="tsb", dir="/tmp"))
        self.store, self.temp, self.work = self.root / "store", self.root / "t", self.root / "work"
        self._ports: Ports | None = None
        try:
            for folder in (self.store, self.temp, self.work):
                folder.mkdir()
            arm_archive(site.archive, self.store / site.model, site.model, arm)
            self.config = self._write_config()
        except BaseException:
            self.end()
            raise

    def environment(self) -> dict[str, str]:
        """The user's environment without what would change the arm, and with this place's own temporary folder."""
        kept = {name: value for name, value in self.site.environ.items() if not name.startswith(_UNWANTED)}
        package = str(Path(ts_mps.__file__).parents[1])
        # The working folder is another one, so a checkout that is not installed has to be named.
        if Path(package).name not in ("site-packages", "dist-packages"):
            kept["PYTHONPATH"] = os.pathsep.join(filter(None, (package, kept.get("PYTHONPATH"))))
        # Programs that pip installed beside this Python, where nobody activated the environment.
        kept["PATH"] = os.pathsep.join((kept.get("PATH", os.defpath), str(Path(sys.executable).parent)))
        return {**kept, "TEMP": str(self.temp), "TMPDIR": str(self.temp), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

    def logs(self) -> str:
        """The last lines of every log that has any."""
        parts = []
        for path in sorted((*self.root.rglob("*.log"), *self.root.rglob("*.out"))):
            text = last_lines(path, _LOG_LINES).strip()
            if text and self.store not in path.parents:
                parts.append(f"-- {path.relative_to(self.root)}\n{text}")
        return "\n".join(parts)

    def end(self) -> None:
        """Remove everything, and let others have the ports."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self._ports is not None:
            self._ports.release()

    def _write_config(self) -> Path:
        self._ports = Ports(len(_ADDRESSES) + len(_GRPC_PORTS))
        ports = list(self._ports.numbers)
        if self.site.port is not None:
            ports[0] = self.site.port
        lines = [f"{name}=http://127.0.0.1:{port}" for name, port in zip(_ADDRESSES, ports, strict=False)]
        lines += [f"{name}={port}" for name, port in zip(_GRPC_PORTS, ports[len(_ADDRESSES) :], strict=True)]
        # TorchServe's queue of 100 would answer a load of more connections with 503; its 6.5 MB may not do for images.
        lines += ["job_queue_size=20000", "max_request_size=100000000", "max_response_size=100000000"]
        path = self.root / "config.properties"
        path.write_text("\n".join(lines) + "\n")
        return path
