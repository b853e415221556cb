"""One `ts-mps start` in a folder of its own, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from ts_mps.guardian.state import State, load_state
from ts_mps.guardian.status import look
from ts_mps.paths import Home

REPOSITORY = Path(__file__).resolve().parents[1]
_START_S = 580
_STOP_S = 120
_LOG_LINES = 15


class Failed(RuntimeError):
    """A row cannot be measured; the message says why, with the ends of the logs."""


class Server:
    """A model store and one instance of ts-mps that serves it.

    Args:
        folder: For archives, configuration and logs; must not exist. Removed by :meth:`end`.
        threads: OMP_NUM_THREADS of each worker.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.temp = folder / "tmp"
        for made in (folder, self.store, self.temp):
            made.mkdir()
        # Sockets lie in it, and their paths must be short.
        self.home = Home(Path(tempfile.mkdtemp(prefix="tsb", dir="/tmp")))
        temp = {"TEMP": str(self.temp), "TMPDIR": str(self.temp), "TS_MPS_HOME": str(self.home.root)}
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        unwanted = ("TS_CONFIG_FILE", "LOG_LOCATION")
        inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
        self.environ: dict[str, str] = {**inherited, **temp, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}

    def build(self, script: str, arguments: Sequence[str]) -> None:
        """Run a build script of handlers/build, which puts an archive into the store.

        Raises:
            Failed: It failed.
        """
        command = [sys.executable, str(REPOSITORY / "handlers" / "build" / f"{script}.py")]
        command += ["--store", str(self.store), "--format", "no-archive", *arguments]
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"{' '.join(command)}\n{_end(done.stdout + done.stderr)}")

    def archive(self, name: str, handler: Path, config: dict[str, object]) -> str:
        """Put a handler without a model into the store; the file's name."""
        model = {"modelName": name, "modelVersion": "1.0", "handler": handler.name, "configFile": "model-config.yaml"}
        with zipfile.ZipFile(self.store / f"{name}.mar", "w") as archive:
            archive.write(handler, handler.name)
            archive.writestr("model-config.yaml", yaml.safe_dump(config))
            manifest = {"runtime": "python", "model": model, "archiverVersion": "0.12.0"}
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        return f"{name}.mar"

    def start(self, mps: bool, models: Sequence[str]) -> None:
        """Start and wait until every worker is READY.

        Raises:
            Failed: It does not start.
        """
        names = ("inference_address", "management_address", "metrics_address")
        *web, grpc_inference, grpc_management = _free_ports(5)
        lines = [f"{name}=http://127.0.0.1:{port}" for name, port in zip(names, web, strict=True)]
        lines += [f"grpc_inference_port={grpc_inference}", f"grpc_management_port={grpc_management}"]
        # TorchServe's queue of 100 would answer the load with 503.
        lines += ["job_queue_size=10000", "max_request_size=20000000"]
        config = self.folder / "config.properties"
        config.write_text("\n".join(lines) + "\n")
        done = self._ts_mps(
            "start", "--mps", "on" if mps else "off", "--model-store", str(self.store), "--ts-config", str(config),
            "--ncs", "--disable-token-auth", "--wait-timeout", str(_START_S - 10), "--models", *models,
            timeout=_START_S,
        )  # fmt: skip
        if done.returncode:
            raise Failed(f"ts-mps start: exit code {done.returncode}\n{_end(done.stdout + done.stderr, 40)}")

    def end(self) -> None:
        """Stop whatever was started and remove every file of it; a second Ctrl-C waits until that is done."""
        with _uninterrupted():
            left = self._stop()
            if left:
                # Without its files nobody could stop it any more.
                again = f"TS_MPS_HOME={self.home.root} {sys.executable} -m ts_mps stop"
                print(f"ts-mps stop: {left}\nTo stop it: {again}", file=sys.stderr, flush=True)
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self.home.root, ignore_errors=True)

    def _stop(self) -> str:
        """What could not be stopped; empty if nothing is left."""
        try:
            done = self._ts_mps("stop", "--drain-timeout", "5", timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            return f"it did not end in {_STOP_S} s"
        return _end(done.stdout + done.stderr) if done.returncode else ""

    @property
    def state(self) -> State:
        """What runs."""
        state = load_state(self.home.instance("default"))
        if state is None:
            raise Failed("ts-mps has left no state")
        return state

    def address(self) -> tuple[str, int]:
        """Host and port of REST inference."""
        status = look(self.home.instance("default"))
        if status is None or not status.as_planned:
            raise Failed(f"not as planned: {status.problems if status else 'nothing runs'}")
        parts = urlsplit(status.inference)
        return parts.hostname or "127.0.0.1", parts.port or 80

    def batch_counters(self, model: str) -> dict[str, float]:
        """The Batch* counters of one model, from the metrics address."""
        where = self.state.endpoints.metrics
        if where is None:
            return {}
        with urllib.request.urlopen(f"http://{where.host}:{where.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        lines = re.findall(rf'^(Batch\w+){{ModelName="{model}",[^}}]*}} (\S+)$', text, re.MULTILINE)
        return {name: float(value) for name, value in lines}

    def client_environ(self) -> dict[str, str]:
        """The environment in which another process runs on the first GPU, as a client of its daemon if there is one."""
        found = dict(self.environ)
        gpu = next(iter(self.state.gpus), None)
        if gpu is not None:
            found["CUDA_VISIBLE_DEVICES"] = gpu.uuid
            if gpu.pipe is not None:
                found["CUDA_MPS_PIPE_DIRECTORY"] = gpu.pipe
        return found

    def logs(self) -> str:
        """The last lines of every log that has any."""
        files = [*self.home.root.rglob("torchserve.out"), *self.home.root.rglob("*.log"), *self.folder.glob("**/*.log")]
        found = [(path, _end(path.read_text(errors="replace"))) for path in files if path.is_file()]
        return "\n".join(f"-- {path}\n{text}" for path, text in found if text)

    def _ts_mps(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ts_mps", *arguments],
            cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore what ends a program, in commands that are started inside as well."""
    before = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _end(text: str, lines: int = _LOG_LINES) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
