"""Breaking what serves under load, fault by fault: found when, served again when, and which requests failed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests
from attributing import Requests
from loading import Load
from serving import Serving
from support import eventually, mps_processes

from ts_mps.errors import MpsError
from ts_mps.events import recorded
from ts_mps.files import read_json
from ts_mps.mps.control import Control
from ts_mps.plan.model import Plan
from ts_mps.worker_records import WorkerRecord

#: Seconds after which TorchServe ends a worker that hangs.
RESPONSE_TIMEOUT = 10
#: Seconds for everything to be as planned again, far more than any fault may take.
PATIENCE = 90.0
#: Seconds in which a request that came while all was as planned has its answer.
ANSWERED = 1.0


@dataclass(frozen=True)
class Blow:
    """What a fault may do.

    Attributes:
        event: Kind of the event that tells that it was found; empty where it leaves none.
        struck: Model -> how many of its requests may fail; None for any number.
        allowed: Seconds beyond a worker's own load time in which it must be served again; None where nothing goes.
        own: Status of the request that did it, and a part of its body; None where no request did.
    """

    event: str
    struck: Mapping[str, int | None] = field(default_factory=dict)
    allowed: float | None = None
    own: tuple[int, str] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a fault did; times in seconds from the fault on.

    Attributes:
        fault: Its name.
        blow: What it might do.
        found: When its event was recorded; None where it leaves none.
        back: When the last worker that came for it was ready; None if none came.
        load: Of those workers, the longest time from the start of its process to ready.
        failed: Model -> statuses of its failed requests (0: no answer): those sent until it was over. One that
            TorchServe dropped is known only half a minute later, and added then.
        sent: Model -> requests sent since the fault before this one was over, and until it was over itself.
        unattached: Workers that were ready without proof at any look.
        trouble: Why it is not as planned; empty if it is.
    """

    fault: str
    blow: Blow
    found: float | None
    back: float | None
    load: float
    failed: Mapping[str, Counter[int]]
    sent: Counter[str]
    unattached: int
    trouble: str = ""

    @property
    def wrong(self) -> list[str]:
        """Everything about it that must not be, a sentence each."""
        found = [f"{self.fault}: {self.trouble}"] if self.trouble else []
        for model, statuses in self.failed.items():
            most = self.blow.struck.get(model, 0)
            if most is not None and statuses.total() > most:
                found.append(f"{self.fault}: of {model} {dict(statuses)} failed, and {most} may")
        if self.unattached:
            found.append(f"{self.fault}: {self.unattached} worker(s) served without MPS")
        if self.blow.event and self.found is None:
            found.append(f"{self.fault}: no event {self.blow.event}")
        if self.blow.allowed is not None and self.back is not None and self.back > self.load + self.blow.allowed:
            found.append(f"{self.fault}: back after {self.back:.1f} s, loaded within {self.load:.1f} s")
        return found

    def row(self) -> str:
        """A line of :data:`HEAD`'s table."""
        found = "-" if self.found is None else f"{self.found:.1f}"
        back = "-" if self.back is None else f"{self.back:.1f}"
        limit = "-" if self.blow.allowed is None else f"+{self.blow.allowed:g}"
        failed = ", ".join(
            f"{model} {statuses.total()} of {self.sent[model]}" for model, statuses in self.failed.items()
        )
        return f"{self.fault:<16}{found:>8}{back:>8}{self.load:>8.1f}{limit:>7}{self.unattached:>12}  {failed}"


HEAD = f"{'fault':<16}{'found':>8}{'back':>8}{'load':>8}{'limit':>7}{'unattached':>12}  failed of sent"


def _born(worker: WorkerRecord) -> float:
    """When a worker's process began, seconds since the epoch; when it was ready, if it is gone already."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(worker.pid).create_time()
    return worker.since


class Scene:
    """An instance under load on one or several GPUs, each with a model of its own: ``gpu0``, ``gpu1``.

    Args:
        serving: Where it is started; with the simulator's environment or a real GPU's.
        handler: A text of :mod:`breakable`.
        gpus: How many GPUs.
        workers: How many workers on each.
        clients: How many clients for each model.
    """

    def __init__(self, serving: Serving, handler: str, *, gpus: int, workers: int, clients: int) -> None:
        self.serving = serving
        self.models = [f"gpu{index}" for index in range(gpus)]
        self._workers = workers
        serving.environ["OMP_NUM_THREADS"] = "1"
        for index, model in enumerate(self.models):
            more = {"deviceIds": [index] * workers, "deviceType": "gpu", "responseTimeout": RESPONSE_TIMEOUT}
            serving.archive(model, handler, workers=workers, **more)
        archives = [f"{model}.mar" for model in self.models]
        self._command = serving.start_command("--models", *archives, "--disable-token-auth", "--mps", "on")
        started = serving.call(self._command)
        assert started.returncode == 0, started.stderr
        self.loads = {model: Load(serving, model, clients=clients) for model in self.models}
        self._requests = Requests(self.loads)
        self._stack = ExitStack()
        self.faults: dict[str, Callable[[str], Blow]] = {
            "worker killed": self._kill_worker,
            "MMU fault": self._fault,
            "server killed": self._kill_server,
            "daemon killed": self._kill_daemon,
            "daemon hung": self._stop_daemon,
            "worker hung": self._hang,
            "out of memory": self._exhaust,
            "guardian killed": self._kill_guardian,
            "java killed": self._kill_java,
        }

    def __enter__(self) -> Scene:
        for load in self.loads.values():
            self._stack.enter_context(load)
        assert eventually(lambda: all(load.good_since(0.0) for load in self.loads.values()), 30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._requests.end()

    @property
    def unexplained(self) -> list[str]:
        """Requests that failed while nothing was broken, a sentence for each kind; complete once this was left."""
        return self._requests.unexplained

    def breaks(self, fault: str, model: str) -> Outcome:
        """Break it and wait until all is as planned again, with good answers for every model."""
        before = {worker.pid for worker in self.serving.workers()}
        unattached: set[int] = set()
        moment, began = time.time(), time.monotonic()
        blow = self.faults[fault](model)

        def found() -> float | None:
            times = [one.time for one in recorded(self.serving.paths()) if one.kind == blow.event and one.time > moment]
            return min(times) - moment if times else None

        def over() -> bool:
            workers = self.serving.workers()
            unattached.update(worker.pid for worker in workers if worker.state == "ready" and worker.proof is None)
            return (not blow.event or found() is not None) and not self.trouble(workers)

        deadline = began + PATIENCE
        while eventually(over, deadline - time.monotonic()):
            # A worker that was struck may look well until its next request.
            time.sleep(ANSWERED)
            if over():
                break
        since = time.monotonic()
        eventually(lambda: all(load.good_since(since) for load in self.loads.values()), 30)
        failed, sent = self._requests.over()
        # So that what the next fault finds under way was sent after this one was over.
        time.sleep(ANSWERED)
        self._requests.count(began)
        # A daemon that is busy with the guardian's question may not answer this very one.
        well = eventually(lambda: not self.trouble(self.serving.workers()), 5)
        fresh = [worker for worker in self.serving.workers() if worker.pid not in before and worker.state == "ready"]
        return Outcome(
            fault,
            blow,
            found() if blow.event else None,
            max((worker.since for worker in fresh), default=moment) - moment if fresh else None,
            max((worker.since - _born(worker) for worker in fresh), default=0.0),
            failed,
            sent,
            len(unattached),
            "" if well else self.trouble(self.serving.workers()) or "It is not as planned all the time.",
        )

    def trouble(self, workers: tuple[WorkerRecord, ...]) -> str:
        """Why it is not as planned; empty if it is."""
        state = self.serving.state()
        if state.phase != "serving" or state.java is None or not state.java.alive():
            return f"It is {state.phase}."
        places = {slot.number for slot in Plan.from_json(read_json(self.serving.paths().plan) or {}).slots}
        ready = {worker.slot.number for worker in workers if worker.state == "ready" and worker.proof is not None}
        if ready != places:
            return f"Slots {sorted(ready)} of {sorted(places)} have a ready worker."
        listed: set[int] = set()
        for gpu in state.gpus:
            with suppress(MpsError):
                control = Control(Path(str(gpu.pipe)), environ=self.serving.environ, timeout=5.0)
                servers = control.servers()
                if any(control.server_status(server) == "FAULT" for server in servers):
                    return f"The server of GPU {gpu.index} is in FAULT."
                listed |= set(control.all_clients())
        missing = {worker.pid for worker in workers if worker.state == "ready"} - listed
        return f"Workers {sorted(missing)} are no clients." if missing else ""

    # -- the faults ------------------------------------------------------------------------------------------------

    def _on(self, model: str) -> list[WorkerRecord]:
        return [worker for worker in self.serving.workers() if worker.slot.model == model]

    def _servers(self, model: str) -> list[psutil.Process]:
        """The MPS servers of a model's GPU."""
        pipe = str(self.serving.home.gpu(self._on(model)[0].slot.gpu).pipe)
        found = []
        for process in mps_processes(self.serving.folder):
            # The guardian's questions are processes that come and go.
            with suppress(psutil.Error, IndexError):
                named = Path(process.cmdline()[0]).name == "nvidia-cuda-mps-server"
                if named and process.environ()["CUDA_MPS_PIPE_DIRECTORY"] == pipe:
                    found.append(process)
        return found

    def _daemon(self, model: str) -> psutil.Process:
        """The control daemon of a model's GPU, as the guardian knows it: its questions have the same name."""
        uuid = self._on(model)[0].slot.gpu
        (daemon,) = [gpu.daemon for gpu in self.serving.state().gpus if gpu.uuid == uuid]
        assert daemon is not None
        return psutil.Process(daemon.pid)

    def _send(self, model: str, body: bytes) -> tuple[int, str]:
        where = self.serving.state().endpoints.inference
        url = f"http://{where.host}:{where.port}/predictions/{model}"
        answer = requests.post(url, data=body, headers={"Content-Type": "x/bytes"}, timeout=60)
        return answer.status_code, answer.text

    def _all_of(self, model: str) -> dict[str, int | None]:
        # One that each worker is inside of; a worker that lost its GPU leaves with its answer.
        return {model: self._workers}

    def _kill_worker(self, model: str) -> Blow:
        os.kill(random.choice(self._on(model)).pid, signal.SIGKILL)
        return Blow("worker-gone", {model: 1}, 2.0)

    def _fault(self, model: str) -> Blow:
        # Under load all workers may have left by themselves before the guardian looks, and the server has recovered.
        return Blow("worker-fault", self._all_of(model), 5.0, self._send(model, b"wild"))

    def _kill_server(self, model: str) -> Blow:
        for server in self._servers(model):
            with suppress(psutil.NoSuchProcess):
                server.kill()
        return Blow("server-gone", self._all_of(model), 5.0)

    def _kill_daemon(self, model: str) -> Blow:
        self._daemon(model).kill()
        return Blow("daemon-gone", self._all_of(model), 5.0)

    def _stop_daemon(self, model: str) -> Blow:
        self._daemon(model).suspend()
        # Three looks of three seconds each, three more before it is replaced, and the turns between them.
        return Blow("daemon-hung", self._all_of(model), 30.0)

    def _hang(self, model: str) -> Blow:
        return Blow("worker-hung", {model: 0}, RESPONSE_TIMEOUT + 5.0, self._send(model, b"hang"))

    def _exhaust(self, model: str) -> Blow:
        return Blow("", {}, None, self._send(model, b"memory"))

    def _kill_guardian(self, model: str) -> Blow:
        guardian = self.serving.state().guardian
        assert guardian is not None
        guardian.send(signal.SIGKILL)
        assert eventually(lambda: not guardian.alive())
        again = self.serving.call(self._command)
        assert again.returncode == 0, again.stderr
        return Blow("", {})

    def _kill_java(self, model: str) -> Blow:
        java = self.serving.state().java
        assert java is not None
        java.send(signal.SIGKILL)
        return Blow("java-gone", dict.fromkeys(self.models))
