"""The watch over one instance: each turn looks, judges, acts, and writes down what it saw."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from ts_mps.events import Event, record
from ts_mps.guardian.watch.act import Actor
from ts_mps.guardian.watch.judge import judge
from ts_mps.guardian.watch.look import Looker
from ts_mps.guardian.watch.memory import Memory
from ts_mps.guardian.watch.seen import NO_CHANGE, Seen, Underway
from ts_mps.guardian.watch.show import watched
from ts_mps.holds import Hold, at_rest, held_back, hold_back, put_to_rest
from ts_mps.mps.daemon import Lease
from ts_mps.paths import Home, InstancePaths
from ts_mps.plan.model import Plan
from ts_mps.processes import ProcessId
from ts_mps.torchserve.api import Api


class Watch:
    """Watches an instance from now on.

    Args:
        home: The runtime folder.
        paths: The instance.
        plan: Its plan.
        leases: UUID -> the lease on its daemon; empty without MPS.
        api: TorchServe's management API.
        report: Told each event.
    """

    def __init__(
        self,
        home: Home,
        paths: InstancePaths,
        plan: Plan,
        leases: Mapping[str, Lease],
        api: Api,
        report: Callable[[Event], None],
    ) -> None:
        self._paths = paths
        self._leases = leases
        self._report = report
        self._plan = plan
        # A guardian before us may have held places back, and put models to rest.
        self._memory = Memory(holds=held_back(paths), parked=at_rest(paths))
        self._held: dict[int, Hold] = dict(self._memory.holds)
        self._resting = self._memory.parked
        self._ask: frozenset[str] = frozenset()
        self._failed: dict[str, str] = {}
        self._daemons = {uuid: lease.daemon for uuid, lease in leases.items()}
        self._looker = Looker(home, paths, plan, self._daemons, time.monotonic())
        models = {slot.model for slot in plan.slots}
        self._actor = Actor(leases, api, len(plan.gpus) + len(models))

    @property
    def acting(self) -> bool:
        """Whether something is being done right now, in threads and with child processes of their own."""
        return self._actor.acting

    @property
    def daemons(self) -> Mapping[str, ProcessId | None]:
        """UUID -> its daemon's process; None where it is out of sight, or gone."""
        return {uuid: self._looker.daemon(uuid) for uuid in self._daemons}

    def replan(self, plan: Plan) -> None:
        """Go by another plan for the same GPUs. What is remembered of slots that it has not is forgotten."""
        self._plan = plan
        self._looker.replan(plan)
        self._memory = self._memory.kept(frozenset(slot.number for slot in plan.slots))

    def turn(self, *, java: bool, java_restarts: int, change: Underway = NO_CHANGE) -> Seen:
        """Look, judge, act, write.

        Args:
            java: Whether TorchServe's frontend lives.
            java_restarts: How often it was started again.
            change: What is being changed on purpose.
        """
        now = time.monotonic()
        self._tell_failures(self._actor.finished())
        self._daemons.update({uuid: lease.daemon for uuid, lease in self._leases.items()})
        busy = self._actor.busy | change.models
        seen = self._looker.look(java=java, now=now, ask=self._ask, busy=busy, timeouts=self._actor.timeouts)
        unlearnt = frozenset(self._actor.unlearnt)
        seen = replace(seen, change=change, scaled=dict(self._actor.scaled), unlearnt=unlearnt)
        judgement = judge(self._memory, seen, now)
        self._memory, self._ask = judgement.memory, judgement.ask
        for event in judgement.events:
            self.tell(event)
        self._hold()
        self._actor.start(judgement.actions)
        with suppress(OSError):  # a full disk must not end the watch; the next turn tries again
            took = time.monotonic() - now
            watched(self._memory, seen, java_restarts=java_restarts, took=took).save(self._paths)
        return seen

    def tell(self, event: Event) -> None:
        """Record an event and say it."""
        record(self._paths, event)
        self._report(event)

    def lost_loading(self, model: str) -> float:
        """When a worker of a model last went before it had loaded, seconds of time.monotonic(); -inf if none did."""
        return self._memory.lost_loading.get(model, float("-inf"))

    def settled(self, seen: Seen) -> bool:
        """Whether every place of the plan that is not held back has a worker that is ready."""
        ready = {worker.slot for worker in seen.workers if worker.ready}
        return all(slot.number in ready or slot.number in self._memory.holds for slot in self._plan.slots)

    def close(self, seconds: float) -> None:
        """End the watch; waits at most so long for what is being done. A daemon may take longer to start."""
        self._actor.close(seconds)

    def _tell_failures(self, finished: Mapping[str, str]) -> None:
        """Tell why repairs failed, once for each reason: what fails is tried again every minute, perhaps for days."""
        for about, why in finished.items():
            if why and why != self._failed.get(about):
                self.tell(Event("repair-failed", f"A repair ({about}) failed: {why}"))
        self._failed.update(finished)

    def _hold(self) -> None:
        """Put in force which slots take no worker, and note what TorchServe is asked for because of that."""
        wanted = dict(self._memory.holds)
        if wanted != self._held:
            with suppress(OSError):  # the next turn tries again
                hold_back(self._paths, wanted)
                self._held = wanted
        if self._memory.parked != self._resting:
            with suppress(OSError):
                put_to_rest(self._paths, self._memory.parked)
                self._resting = self._memory.parked
