"""One look at an instance: /proc and files every time, MPS's control program and NVML only now and then, or on a hint.

A control daemon serves one front-end at a time, and each question starts a process. So a GPU is asked every
:data:`ASK_EVERY` seconds, one after the other, and at once where something hints at trouble: a worker that came or
went, a server that died, a line in the server's log, or the last judgement's wish.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from ts_mps.errors import MpsError
from ts_mps.events import Tail
from ts_mps.files import is_locked
from ts_mps.gpu.presence import Presence
from ts_mps.guardian.watch.seen import GpuSeen, Place, Seen, WorkerSeen
from ts_mps.mps.control import Control, DaemonNotFound
from ts_mps.mps.daemon import Daemon
from ts_mps.paths import Home, InstancePaths
from ts_mps.plan.model import Plan
from ts_mps.processes import ProcessId
from ts_mps.seats import seat_holders
from ts_mps.torchserve.failures import failures
from ts_mps.worker_records import WorkerRecord, batch_of, records

#: Seconds between two questions to a daemon that nothing draws attention to.
ASK_EVERY = 10.0
#: Seconds for an answer. Milliseconds are usual; a server that starts on a GPU without persistence mode takes longer.
ANSWER_SECONDS = 3.0


@dataclass
class _Known:
    """What is kept of a GPU between looks."""

    seen: GpuSeen
    next_ask: float
    log_size: int = -1
    workers: frozenset[tuple[int, bool]] = frozenset()
    daemon: ProcessId | None = None


class Looker:
    """Looks at one instance.

    Args:
        home: The runtime folder.
        paths: The instance.
        plan: Its plan.
        daemons: UUID -> its daemon; replaced as daemons are brought back. Empty without MPS.
        now: Seconds of time.monotonic(); what was recorded before is not reported.
    """

    def __init__(self, home: Home, paths: InstancePaths, plan: Plan, daemons: Mapping[str, Daemon], now: float) -> None:
        self._home = home
        self._paths = paths
        self._daemons = daemons
        self._began = now
        self._events = Tail(paths, kept=False)
        self._presence = Presence()
        self._processes: dict[int, ProcessId] = {}
        self._failures: dict[str, float] = {}
        self._failures_changed = 0.0
        self.replan(plan)
        self._known = {
            gpu.uuid: _Known(
                GpuSeen(gpu.uuid, gpu.index, "off" if gpu.cap is None else "running", cap=gpu.cap),
                # Not all at once.
                now + ASK_EVERY * place / len(plan.gpus),
            )
            for place, gpu in enumerate(plan.gpus)
        }

    def replan(self, plan: Plan) -> None:
        """Go by another plan for the same GPUs."""
        self._places = tuple(Place(slot.number, slot.model, slot.version or "", slot.gpu) for slot in plan.slots)

    def look(
        self,
        *,
        java: bool,
        now: float,
        ask: Collection[str] = (),
        busy: frozenset[str] = frozenset(),
        timeouts: Mapping[str, float] | None = None,
    ) -> Seen:
        """Look.

        Args:
            java: Whether TorchServe's frontend lives.
            now: Seconds of time.monotonic().
            ask: GPUs whose daemons must be asked.
            busy: What is being acted upon; daemons that are being brought back are left alone.
            timeouts: Model -> TorchServe's response timeout, seconds.
        """
        living, departed = self._workers()
        gpus = tuple(self._gpu(known, living, now, ask, busy) for known in self._known.values())
        told, tried = tuple(self._events.news()), self._failed()
        return Seen(java, gpus, living, self._places, departed, told, tried, dict(timeouts or {}), busy)

    def daemon(self, uuid: str) -> ProcessId | None:
        """The process of a GPU's daemon when it was last seen alive; None if it never was, or is out of sight."""
        return self._known[uuid].daemon

    def _failed(self) -> dict[str, float]:
        with suppress(OSError):
            changed = self._paths.failures.stat().st_mtime
            if changed != self._failures_changed:
                self._failures_changed = changed
                self._failures = {failure.model: failure.clock for failure in failures(self._paths, since=self._began)}
        return self._failures

    def _workers(self) -> tuple[tuple[WorkerSeen, ...], tuple[WorkerSeen, ...]]:
        """Those that live, and the last ones of free slots."""
        found, departed = [], []
        before, self._processes = self._processes, {}
        for record, holds in records(self._paths):
            process = record.process
            # Whoever holds the slot lives, so /proc is read once for each; a newcomer may not have written its record.
            lives = (holds and before.get(record.pid) == process) or process.alive()
            if holds and lives:
                self._processes[record.pid] = process
                found.append(self._worker(record))
            elif not holds and not lives:
                departed.append(self._worker(record))
        return tuple(found), tuple(departed)

    def _worker(self, record: WorkerRecord) -> WorkerSeen:
        return WorkerSeen(
            record.process,
            record.slot.number,
            record.slot.model,
            record.slot.version or "",
            record.planned,
            record.slot.gpu,
            record.state == "ready",
            record.proof.server if record.proof else None,
            batch_of(self._paths, record.slot.number),
        )

    def _gpu(
        self, known: _Known, living: tuple[WorkerSeen, ...], now: float, ask: Collection[str], busy: frozenset[str]
    ) -> GpuSeen:
        uuid = known.seen.uuid
        daemon = self._daemons.get(uuid)
        seen = replace(known.seen, asked=False, strangers=())
        # Hints of a time in which nobody may ask are kept for the first look after it.
        if uuid not in busy:
            if self._hint(known, living, daemon) or uuid in ask or now >= known.next_ask:
                known.next_ask = now + ASK_EVERY
                seen = replace(seen, lost=self._presence.why_lost(uuid))
                if daemon is not None and not seen.lost:
                    seen = self._ask(seen, daemon)
            if daemon is not None and not seen.lost and not self._daemon_lives(known, daemon):
                seen = replace(seen, daemon="gone", asked=False)
        known.seen = seen
        return seen

    def _hint(self, known: _Known, living: tuple[WorkerSeen, ...], daemon: Daemon | None) -> bool:
        """Whether something has changed that a daemon should be asked about."""
        here = frozenset((w.process.pid, w.ready) for w in living if w.gpu == known.seen.uuid)
        changed, known.workers = here != known.workers, here
        if daemon is None:
            return changed
        # Both, as each remembers what it saw.
        grew, died = self._log_grew(known, daemon), self._server_died(known)
        return changed or grew or died or known.seen.daemon in ("gone", "silent")

    def _log_grew(self, known: _Known, daemon: Daemon) -> bool:
        """Whether the server wrote into its log: it says so at once when a GPU fault strikes."""
        with suppress(OSError):
            before, known.log_size = known.log_size, (Path(daemon.log) / "server.log").stat().st_size
            return before not in (-1, known.log_size)
        return False

    def _server_died(self, known: _Known) -> bool:
        # A daemon in another PID namespace names pids that are not ours to look up; it is asked in its turn only.
        return known.daemon is not None and any(ProcessId.of(pid) is None for pid in known.seen.servers)

    def _daemon_lives(self, known: _Known, daemon: Daemon) -> bool:
        if daemon.pid is None:
            return known.seen.daemon != "gone"
        if known.daemon is None or known.daemon.pid != daemon.pid:
            known.daemon = ProcessId.of(daemon.pid) or known.daemon
        return known.daemon is not None and known.daemon.alive()

    def _ask(self, seen: GpuSeen, daemon: Daemon) -> GpuSeen:
        try:
            control = Control(Path(daemon.pipe), timeout=ANSWER_SECONDS)
            servers = control.servers()
            states = ", ".join(control.server_status(server) or "none" for server in servers) or "none"
            clients = frozenset(pid for server in servers for pid in control.clients(server))
        except DaemonNotFound:
            return replace(seen, daemon="gone", asked=True)
        except (MpsError, OSError):
            # No control program (its package is being replaced) and no process to be had are no answer either: they
            # must not end the look at everything else. It is asked again at the next one.
            return replace(seen, daemon="silent", asked=True)
        return replace(
            seen,
            daemon="adopted" if daemon.adopted else "running",
            asked=True,
            server=states,
            servers=frozenset(servers),
            clients=clients,
            strangers=self._strangers(seen.uuid, clients) if "FAULT" in states else (),
        )

    def _strangers(self, uuid: str, clients: frozenset[int]) -> tuple[ProcessId, ...]:
        """Clients that nobody else ends: children of our workers, and what an instance without a guardian left."""
        ours = set(self._processes)
        orphans = {
            int(holder["pid"])
            for holder in seat_holders(self._home.gpu(uuid))
            if "instance" in holder and not is_locked(self._home.instance(holder["instance"]).guardian_lock)
        }
        found = []
        for pid in clients - ours:
            with suppress(psutil.Error):
                parents = {parent.pid for parent in psutil.Process(pid).parents()}
                process = ProcessId.of(pid)
                if process is not None and (parents & ours or pid in orphans) and pid != os.getpid():
                    found.append(process)
        return tuple(found)
