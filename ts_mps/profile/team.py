"""Workers of one model, started together, loaded side by side, and ended together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ts_mps.errors import NotReadyError, TsMpsError
from ts_mps.files import last_lines, write_json
from ts_mps.mps.daemon import terminate_and_kill
from ts_mps.paths import InstancePaths
from ts_mps.plan.model import Plan, PlannedGpu, Slot
from ts_mps.profile.channel import Channel
from ts_mps.profile.frontend import LOAD_SECONDS, BadAnswer, Frontend, NoMemory
from ts_mps.profile.interrupts import uninterrupted
from ts_mps.profile.job import Job
from ts_mps.profile.messages import Disconnected, load_message
from ts_mps.profile.stage import Stage
from ts_mps.torchserve.config import DATA
from ts_mps.torchserve.failures import failures

#: Seconds for a process to import torch and listen; many start at once on few cores and a cold disk.
_START_SECONDS = 300.0
#: Seconds for a worker to end once its frontend is gone.
_END_SECONDS = 15.0
_OUT_OF_MEMORY = ("out of memory", "CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass
class Member:
    """One worker: its process, what we know of it, and our ends of its connections."""

    process: subprocess.Popen[bytes]
    channel: Channel
    log: Path
    socket: Path
    frontend: Frontend | None = None

    @property
    def driven(self) -> Frontend:
        """The connection of a worker that has been started."""
        assert self.frontend is not None
        return self.frontend


class Team:
    """Workers, loaded while the context manager is open.

    Args:
        job: The model.
        stage: Where they run.
        count: How many.
        batch_size: Most requests in a batch.
        mps: Whether they are MPS clients.
        percentage: Their CUDA_MPS_ACTIVE_THREAD_PERCENTAGE; None for no limit.
        on_attached: Called when all have a CUDA context and none has begun to load, with what the first one saw.

    Raises:
        NotReadyError: A worker ended while it loaded; its traceback is in the details. (On entering, as what follows.)
        NoMemory: The same, for want of memory.
    """

    def __init__(
        self,
        job: Job,
        stage: Stage,
        count: int,
        batch_size: int,
        *,
        mps: bool,
        percentage: float | None = None,
        on_attached: Callable[[dict[str, Any]], None] = lambda seen: None,
    ) -> None:
        self._job = job
        self._stage = stage
        self._count = count
        self._batch_size = batch_size
        self._mps = mps
        self._percentage = percentage
        self._on_attached = on_attached
        self._instance = InstancePaths(Path())
        self.members: list[Member] = []

    def __enter__(self) -> Team:
        try:
            self._instance = self._prepare()
            for number in range(self._count):
                self.members.append(self._start(number))
            self._load()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every worker; one that does not go by itself is taken out of MPS first, as MPS wants it."""
        with uninterrupted():
            self._close()

    def _close(self) -> None:
        for member in self.members:
            member.channel.close()
            if member.frontend is not None:
                member.frontend.close()
        deadline = time.monotonic() + _END_SECONDS
        left = []
        for member in self.members:
            if member.frontend is None:
                member.process.kill()  # it has not come to CUDA
            try:
                member.process.wait(max(0.05, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                left.append(member.process)
        if left and self._mps and self._stage.pipe is not None:
            terminate_and_kill(Path(self._stage.pipe), [p.pid for p in left], environ=self._stage.environ)
        for process in left:
            process.kill()
            process.wait()
        self.members = []

    def explain(self, member: Member, error: Exception) -> TsMpsError:
        """What went wrong while a worker answered batches, with the end of its log."""
        log = last_lines(member.log, 30)
        if isinstance(error, NoMemory):
            return error
        if isinstance(error, BadAnswer):
            return BadAnswer(error.what, error.remedy, "\n".join(filter(None, (error.details, "Worker's log:", log))))
        what = "did not answer in time" if isinstance(error, TimeoutError) else "ended"
        return TsMpsError(
            f"A worker of model {self._job.model} {what} while it ran batches of {self._batch_size}.", details=log
        )

    def _prepare(self) -> InstancePaths:
        root = Path(tempfile.mkdtemp(prefix="team-", dir=self._stage.home.root))
        instance = self._stage.home.instance(root.name)
        for folder in (instance.slots, instance.failures, instance.no_mps):
            folder.mkdir(mode=0o700, parents=True)
        write_json(instance.plan, self._plan().as_json())
        return instance

    def _plan(self) -> Plan:
        gpu, stage = self._stage.gpu, self._stage
        pipe, cap = (stage.pipe, stage.cap) if self._mps else (None, None)
        gpus = (PlannedGpu(gpu.index, gpu.uuid, gpu.name, cap, pipe),) if gpu else ()
        # As ``ts-mps start`` shares the cores out; a user's own OMP_NUM_THREADS stands.
        cores = len(os.sched_getaffinity(0))
        threads = 0 if "OMP_NUM_THREADS" in stage.environ else max(1, cores // self._count)
        archive, uuid = self._job.archive, gpu.uuid if gpu else None
        slots = tuple(
            Slot(number, self._job.model, archive.version, uuid, threads, thread_percentage=self._percentage)
            for number in range(self._count)
        )
        return Plan(gpus, slots, mps=self._mps)

    def _start(self, number: int) -> Member:
        """Start one worker as TorchServe does (WorkerLifeCycle): in the model's folder, which is on Python's path."""
        where = self._stage.home.root / f"w.{number}"
        where.unlink(missing_ok=True)
        log = self._instance.root / f"worker-{number}.log"
        path = [self._stage.environ.get("PYTHONPATH", ""), str(self._stage.folder)]
        environ = {**self._stage.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
        channel, theirs = Channel.pair()
        words = ["--sock-type", "unix", "--sock-name", str(where), "--metrics-config", str(DATA / "metrics.yaml")]
        home = [str(self._stage.home.root), self._instance.name]
        with log.open("wb") as output, theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "ts_mps.profile.worker", str(theirs.fileno()), *home, "--", *words],
                cwd=self._stage.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                # Ctrl-C is for us; a worker that dies inside a batch is what MPS does not like.
                start_new_session=True,
            )
        return Member(process, channel, log, where)

    def _load(self) -> None:
        gpu = 0 if self._stage.gpu is not None else None
        handler = self._job.archive.handler
        load = load_message(self._job.model, str(self._stage.folder), self._batch_size, handler, gpu)
        member = self.members[0]
        try:
            for member in self.members:
                member.frontend = self._connect(member)
                member.frontend.send(load)
            seen = [self._hear(member) for member in self.members]
            self._on_attached(seen[0])
            for member in self.members:
                member.channel.send({"load": True})
            for member in self.members:
                if member.driven.receive(LOAD_SECONDS).code != 200:
                    raise Disconnected
        except (Disconnected, TimeoutError) as error:
            raise self._not_loaded(member, error) from error

    def _hear(self, member: Member) -> dict[str, Any]:
        try:
            return member.channel.receive(_START_SECONDS)
        except (Disconnected, TimeoutError) as error:
            raise self._not_loaded(member, error) from error

    def _connect(self, member: Member) -> Frontend:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if member.process.poll() is not None:
                raise Disconnected
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(member.socket))
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                time.sleep(0.02)
                continue
            return Frontend(connection)
        raise TimeoutError

    def _not_loaded(self, member: Member, error: Exception) -> TsMpsError:
        # The worker writes its failure down before it ends.
        with suppress(subprocess.TimeoutExpired):
            member.process.wait(_END_SECONDS if isinstance(error, Disconnected) else 0.01)
        found = failures(self._instance)
        log = last_lines(member.log, 40)
        if found:
            what, details = found[0].what, found[0].traceback or log
        else:
            slow = isinstance(error, TimeoutError)
            what, details = ("it took too long" if slow else f"exit status {member.process.poll()}"), log
        at = f"{self._count} workers, " if self._count > 1 else ""
        sentence = f"A worker of model {self._job.model} did not load ({at}batch size {self._batch_size}): {what}"
        if any(words in f"{what}\n{details}" for words in _OUT_OF_MEMORY):
            return NoMemory(sentence, details=details)
        return NotReadyError(sentence, details=details)
