"""The real TorchServe behind the real command line, in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import yaml
from support import hear_signals

from ts_mps.guardian.state import load_state
from ts_mps.guardian.status import look
from ts_mps.paths import Home
from ts_mps.plan.model import Plan
from ts_mps.worker_records import workers

ECHO = """
class Echo:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [row.get("body", b"") for row in data]
"""

#: Becomes an MPS client while it loads, through the simulator's side door; more handlers are made of it.
CLIENT = """
import os
from pathlib import Path

class Client:
    def initialize(self, context):
        clients = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]) / "sim-clients"
        clients.mkdir(exist_ok=True)
        (clients / str(os.getpid())).touch()

    def handle(self, data, context):
        return [b"served"] * len(data)
"""

SLOW = """
import time

class Slow:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        time.sleep(float(bytes(data[0]["body"])))
        return [b"slept"] * len(data)
"""

BROKEN = """
class Broken:
    def initialize(self, context):
        raise ValueError("the weights are of another model")

    def handle(self, data, context):
        return data
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Serving:
    """A model store, a configuration with free ports, and `ts-mps` in processes of its own."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.run_folder = folder / "run"
        self.temp = folder / "tmp"
        for path in (self.store, self.run_folder, self.temp):
            path.mkdir()
        self.home = Home(folder / "home")
        unwanted = ("TS_CONFIG_FILE", "CUDA_VISIBLE_DEVICES", "LOG_LOCATION", "OMP_NUM_THREADS")
        self.environ = {
            **{name: value for name, value in environ.items() if name not in unwanted},
            "TS_MPS_HOME": str(self.home.root),
            "TEMP": str(self.temp),
            "TMPDIR": str(self.temp),
        }
        self.config = self.write_config()
        #: Seconds that a command may take.
        self.timeout = 200

    def write_config(self, name: str = "config.properties", **more: object) -> Path:
        inference, management, metrics, grpc_inference, grpc_management = free_ports(5)
        values = {
            "inference_address": f"http://127.0.0.1:{inference}",
            "management_address": f"http://127.0.0.1:{management}",
            "metrics_address": f"http://127.0.0.1:{metrics}",
            "grpc_inference_port": grpc_inference,
            "grpc_management_port": grpc_management,
            **more,
        }
        path = self.folder / name
        path.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
        return path

    def archive(self, name: str, handler: str, *, runtime: str = "python", workers: int = 1, **config: object) -> str:
        """A .mar in the store, written as the archiver writes it."""
        model = {"modelName": name, "modelVersion": "1.0", "handler": "handler.py", "configFile": "model-config.yaml"}
        config = {"minWorkers": workers, "maxWorkers": workers, "batchSize": 1, "maxBatchDelay": 10, **config}
        with zipfile.ZipFile(self.store / f"{name}.mar", "w") as archive:
            archive.writestr("handler.py", handler)
            archive.writestr("model-config.yaml", yaml.safe_dump(config))
            manifest = {"runtime": runtime, "model": model, "archiverVersion": "0.12.0"}
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        return f"{name}.mar"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "ts_mps", *arguments]

    def start_command(self, *arguments: str) -> list[str]:
        store = ("--model-store", str(self.store), "--ts-config", str(self.config), "--ncs")
        return self.command("start", *store, *arguments)

    def call(self, command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.run_folder,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=self.timeout,
            check=False,
        )

    def start(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.call(self.start_command(*arguments), **environ)

    def start_planned(self, settings: str, *models: str) -> Plan:
        """Make a plan for models of the store with these settings, show it, and start it."""
        (self.folder / "ts-mps.toml").write_text(settings)
        file = self.folder / "plan.json"
        where = ("--model-store", str(self.store), "--ts-config", str(self.config), "--ncs", "--models", *models)
        made = self.ts_mps("plan", *where, "--settings", str(self.folder / "ts-mps.toml"), "-o", str(file))
        assert made.returncode == 0, made.stderr
        print(made.stdout)
        started = self.start("--models", *models, "--plan", str(file))
        assert started.returncode == 0, started.stderr
        return Plan.from_json(json.loads(file.read_text()))

    def ts_mps(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.call(self.command(*arguments), **environ)

    def popen(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.run_folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=hear_signals,
        )

    def link_checkout(self) -> None:
        """Let commands find the named workloads, which are files of the repository and not of an installed package."""
        for name in ("benchmarks", "handlers"):
            (self.run_folder / name).symlink_to(Path(__file__).parents[1] / name)

    def paths(self, name: str = "default"):
        return self.home.instance(name)

    def state(self, name: str = "default"):
        return load_state(self.paths(name))

    def status(self, name: str = "default"):
        return look(self.paths(name))

    def api(self, name: str = "default"):
        return self.state(name).endpoints.api()

    def workers(self, name: str = "default"):
        return tuple(workers(self.paths(name)))

    def processes(self) -> list[psutil.Process]:
        """Every living process that has to do with this folder, but for this one's own children that are tests."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                words = [*process.cmdline(), process.cwd(), process.environ().get("TS_MPS_HOME", "")]
            except psutil.Error:
                continue
            if any(str(self.folder) in word for word in words):
                found.append(process)
        return found

    def left(self) -> list[str]:
        """What a stop must not leave: processes, slots, sockets, TorchServe's pid and key files."""
        names = [f"process {process.pid} {' '.join(process.cmdline()[:4])}" for process in self.processes()]
        files = [
            path
            for path in self.folder.rglob("*")
            if path.is_socket()
            or path.name in ("key_file.json", ".model_server.pid")
            or (path.parent.name in ("slots", "seats", "leases") and path.suffix != "" and path.is_file())
        ]
        return names + [str(path) for path in files]

    def kill_everything(self) -> None:
        for process in self.processes():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
