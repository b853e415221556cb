"""A small world for the watch to judge: two GPUs, their daemons and servers, TorchServe, workers that come and go."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

from ts_mps.events import Event
from ts_mps.guardian.watch.judge import judge
from ts_mps.guardian.watch.memory import (
    EndProcesses,
    LearnTimeout,
    Memory,
    RestoreDaemon,
    ReviveModel,
    ScaleModel,
)
from ts_mps.guardian.watch.seen import GpuSeen, Place, Seen, WorkerSeen
from ts_mps.processes import ProcessId

GPUS = ("GPU-0", "GPU-1")
#: Two models on GPU 0, one of them on GPU 1 too.
PLACES = (
    Place(0, "bert", "1.0", "GPU-0"),
    Place(1, "bert", "1.0", "GPU-0"),
    Place(2, "rank", "1.0", "GPU-0"),
    Place(3, "bert", "1.0", "GPU-1"),
    Place(4, "bert", "1.0", "GPU-1"),
)
TIMEOUT = 20.0


@dataclass
class Worker:
    process: ProcessId
    place: Place
    server: int | None = None  # of its context, once it has one
    ready: bool = False
    listed: bool = True
    hung_since: float | None = None
    dies_at: float | None = None  # it was killed, and the driver takes its time


@dataclass
class Gpu:
    uuid: str
    daemon: str = "running"
    server: int = 0
    victims: set[int] = field(default_factory=set)  # of a fault; the server is in FAULT while one of them lives
    lost: bool = False


class World:
    """What the judge's actions and the faults of a test do to an instance; each tick is a second."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.pids = itertools.count(100)
        self.gpus = {uuid: Gpu(uuid, server=next(self.pids)) for uuid in GPUS}
        self.workers: dict[int, Worker] = {}
        self.memory = Memory()
        self.java = True
        self.ask: frozenset[str] = frozenset()
        self.events: list[Event] = []
        self.ended: list[ProcessId] = []
        self.asleep: set[str] = set()  # models that TorchServe was told to stop
        self.scaled: dict[tuple[str, str], int] = {}  # what TorchServe was told, and took
        self.deaf = False  # TorchServe takes no such order
        self.told: list[Event] = []
        self.linger = 0.0  # seconds that a killed process takes to go
        for place in PLACES:
            self.workers[place.slot] = self.fresh(place, ready=True)
        self.before: dict[int, ProcessId] = {}
        self.tick(2)

    def fresh(self, place: Place, *, ready: bool = False) -> Worker:
        process = ProcessId(next(self.pids), 1)
        return Worker(process, place, self.gpus[place.gpu].server if ready else None, ready)

    def kill(self, slot: int) -> None:
        worker = self.workers.pop(slot, None)
        if worker is not None:
            self.gpus[worker.place.gpu].victims.discard(worker.process.pid)

    def on(self, uuid: str) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.place.gpu == uuid]

    def state(self, gpu: Gpu) -> str:
        return "FAULT" if gpu.victims else "ACTIVE"

    def healthy(self, worker: Worker) -> bool:
        gpu = self.gpus[worker.place.gpu]
        return (
            worker.ready
            and worker.server == gpu.server
            and worker.listed
            and worker.process.pid not in gpu.victims
            and worker.hung_since is None
            and worker.dies_at is None
            and not gpu.lost
        )

    def seen(self) -> Seen:
        gpus = []
        current = {slot: worker.process for slot, worker in self.workers.items()}
        for index, (uuid, gpu) in enumerate(self.gpus.items()):
            asked = (
                uuid in self.ask
                or int(self.now) % 10 == index
                or current != self.before
                or bool(gpu.victims)  # the server's log grows
                or gpu.daemon in ("gone", "silent")
            )
            clients = frozenset(w.process.pid for w in self.on(uuid) if w.server == gpu.server and w.listed)
            seen = GpuSeen(uuid, index, gpu.daemon, asked and gpu.daemon != "gone", cap=48)
            if gpu.lost:
                seen = replace(seen, lost="it fell off the bus", asked=False)
            elif gpu.daemon == "running":
                seen = replace(seen, server=self.state(gpu), servers=frozenset({gpu.server}), clients=clients)
            gpus.append(seen)
        self.before = current
        living = tuple(
            WorkerSeen(
                worker.process,
                worker.place.slot,
                worker.place.model,
                worker.place.version,
                True,
                worker.place.gpu,
                worker.ready,
                worker.server if worker.ready else None,
                None if worker.hung_since is None else int(worker.hung_since),
            )
            for worker in self.workers.values()
        )
        told, self.told = tuple(self.told), []
        seen = Seen(self.java, tuple(gpus), living, PLACES, (), told, {}, {"bert": TIMEOUT, "rank": TIMEOUT})
        return replace(seen, scaled=dict(self.scaled))

    def tick(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.now += 1.0
            judgement = judge(self.memory, self.seen(), self.now)
            self.memory, self.ask = judgement.memory, judgement.ask
            self.events += judgement.events
            for action in judgement.actions:
                self.obey(action)
            self.torchserve()

    def obey(self, action: object) -> None:
        match action:
            case EndProcesses(gpu=uuid, processes=processes):
                for process in processes:
                    assert process not in self.ended, f"{process} was ended twice"
                    self.ended.append(process)
                    worker = next((w for w in self.workers.values() if w.process == process), None)
                    if worker is not None:
                        assert worker.place.gpu == uuid, "a worker of another GPU"
                        assert not self.healthy(worker), f"{worker} was healthy"
                        worker.dies_at = self.now + self.linger
            case RestoreDaemon(gpu=uuid):
                gpu = self.gpus[uuid]
                assert gpu.daemon != "running", "a daemon that answers"
                gpu.daemon, gpu.server, gpu.victims = "running", next(self.pids), set()
            case ScaleModel() if self.deaf:
                self.scaled.pop((action.model, action.version), None)
            case ScaleModel(model=model, workers=count):
                self.scaled[model, action.version] = count
                (self.asleep.discard if count else self.asleep.add)(model)
                for slot in [slot for slot, w in self.workers.items() if w.place.model == model and not count]:
                    self.kill(slot)
            case ReviveModel() | LearnTimeout():
                pass
            case _:
                raise AssertionError(action)

    def torchserve(self) -> None:
        """Workers load one step a second: come, open their context, be ready; but never without their daemon."""
        for slot in [s for s, w in self.workers.items() if w.dies_at is not None and w.dies_at <= self.now]:
            self.kill(slot)
        for place in PLACES:
            gpu, worker = self.gpus[place.gpu], self.workers.get(place.slot)
            if worker is None:
                if self.java and place.slot not in self.memory.holds and place.model not in self.asleep:
                    self.workers[place.slot] = self.fresh(place)
            elif worker.ready or gpu.daemon != "running" or gpu.victims or gpu.lost:
                continue
            elif worker.server is None:
                worker.server = gpu.server
            elif worker.server == gpu.server:
                worker.ready = True
            else:
                self.kill(place.slot)  # it does not find itself among the clients

    @property
    def as_planned(self) -> bool:
        return len(self.workers) == len(PLACES) and all(self.healthy(worker) for worker in self.workers.values())
