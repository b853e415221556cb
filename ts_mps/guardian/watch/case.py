"""The working copy of one judgement: what was remembered, what was seen, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ts_mps.events import Event
from ts_mps.guardian.watch.memory import Action, Ended, EndProcesses, Fault, Judgement, Memory
from ts_mps.guardian.watch.seen import GpuSeen, Place, Seen, WorkerSeen
from ts_mps.processes import ProcessId

#: Seconds after which a process that was ended and still lives is killed again.
AGAIN = 30.0
#: Recoveries that are remembered.
_RECOVERIES = 100


class Case:
    """One judgement being made. Only :func:`ts_mps.guardian.watch.judge.judge` makes one."""

    def __init__(self, memory: Memory, seen: Seen, now: float) -> None:
        self.before = memory
        self.seen = seen
        self.now = now
        self.departed = {worker.slot: worker.process for worker in seen.departed}
        self.servers = dict(memory.servers)
        self.faults = dict(memory.faults)
        self.absent = dict(memory.absent)
        self.lost_loading = dict(memory.lost_loading)
        self.ended = dict(memory.ended)
        self.unattached = dict(memory.unattached)
        self.silent = dict(memory.silent)
        self.batches = dict(memory.batches)
        self.causes = dict(memory.causes)
        self.crashes = dict(memory.crashes)
        self.holds = dict(memory.holds)
        self.parked = set(memory.parked)
        self.tried = dict(memory.tried)
        self.learnt = dict(memory.learnt)
        self.blamed = dict(memory.blamed)
        self.restarts = {model: dict(causes) for model, causes in memory.restarts.items()}
        self.counts = dict(memory.counts)
        self.recoveries = memory.recoveries
        self.actions: list[Action] = []
        self.events: list[Event] = []
        self.ask: set[str] = set()

    def say(
        self,
        kind: str,
        text: str,
        *,
        gpu: str = "",
        model: str = "",
        pid: int = 0,
        cause: str = "",
        seconds: float | None = None,
    ) -> None:
        """Record an event."""
        self.events.append(Event(kind, text, gpu, model, pid, cause, seconds))

    def count(self, kind: str, gpu: str) -> None:
        """Count a fault."""
        key = f"{kind} {gpu}".strip()
        self.counts[key] = self.counts.get(key, 0) + 1

    def recovered(self, text: str, seconds: float, *, gpu: str = "", model: str = "", cause: str = "") -> None:
        """Record that something is as planned again."""
        self.recoveries = (*self.recoveries, seconds)[-_RECOVERIES:]
        self.say("recovered", text, gpu=gpu, model=model, cause=cause, seconds=round(seconds, 3))

    def workers_on(self, gpu: str | None) -> list[WorkerSeen]:
        """The living workers on a GPU."""
        return [worker for worker in self.seen.workers if worker.gpu == gpu]

    def places_of(self, model: str, gpu: str | None) -> list[Place]:
        """The plan's places of a model on a GPU."""
        return [place for place in self.seen.places if place.model == model and place.gpu == gpu]

    def open(self, gpu: GpuSeen, kind: str, text: str) -> Fault:
        """The GPU's open fault, opened with this kind if there is none, or made this kind."""
        fault = self.faults.get(gpu.uuid)
        if fault is not None and fault.kind == kind:
            return fault
        self.say(kind, text, gpu=gpu.uuid)
        self.count(kind, gpu.uuid)
        if fault is not None:
            fault = replace(fault, kind=kind, tries=0, next_try=0.0)
        else:
            was = {slot: worker.process for slot, worker in self.before.workers.items() if worker.gpu == gpu.uuid}
            living = {worker.slot: worker.process for worker in self.workers_on(gpu.uuid)}
            # Before the living: a slot's new worker may be there already, and it was the old one that was struck.
            fault = Fault(kind, self.now, {**living, **was})
        self.faults[gpu.uuid] = fault
        return fault

    def end(self, gpu: str, processes: Iterable[ProcessId], cause: str, *, through_mps: bool = True) -> None:
        """End processes, but for those that have been ended before: a second terminate_client blocks the daemon."""
        fresh = tuple(process for process in dict.fromkeys(processes) if process not in self.ended)
        if fresh:
            self.ended.update(dict.fromkeys(fresh, Ended(cause, gpu, self.now)))
            self.actions.append(EndProcesses(gpu, fresh, through_mps))

    def end_again(self) -> None:
        """Kill those that live long after they were ended: the first try failed, or the driver holds them.

        Past MPS, for the sake of its daemon, see :meth:`end`.
        """
        late: dict[str, list[ProcessId]] = {}
        for process, ended in self.ended.items():
            if self.now - ended.at >= AGAIN and ended.gpu not in self.seen.busy:
                self.ended[process] = replace(ended, at=self.now)
                late.setdefault(ended.gpu, []).append(process)
        # Together: one that cannot be ended keeps nobody else of the same action, but would keep the next one.
        self.actions += [EndProcesses(gpu, tuple(mine), through_mps=False) for gpu, mine in late.items()]

    def done(self, java_since: float | None) -> Judgement:
        """The judgement."""
        memory = Memory(
            workers={worker.slot: worker for worker in self.seen.workers} if self.seen.java else {},
            departed=self.departed,
            servers=self.servers,
            faults=self.faults,
            absent=self.absent,
            lost_loading=self.lost_loading,
            ended=self.ended,
            unattached=self.unattached,
            silent=self.silent,
            batches=self.batches,
            causes=self.causes,
            crashes=self.crashes,
            holds=self.holds,
            parked=frozenset(self.parked),
            tried=self.tried,
            learnt=self.learnt,
            blamed=self.blamed,
            restarts=self.restarts,
            counts=self.counts,
            recoveries=self.recoveries,
            java_since=java_since,
        )
        return Judgement(memory, tuple(self.actions), tuple(self.events), frozenset(self.ask))
