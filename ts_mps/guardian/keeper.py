"""Keeping an instance as it was started: one turn a second, in which GPUs and workers are watched, and java is kept."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ts_mps.errors import TsMpsError
from ts_mps.events import Event
from ts_mps.guardian.change.changer import Changer
from ts_mps.guardian.launch import expected
from ts_mps.guardian.planning import with_planned_workers
from ts_mps.guardian.prepare import Prepared
from ts_mps.guardian.server import PAUSES, Ended, Server, note_pid, pause, scale_as_asked
from ts_mps.guardian.state import State
from ts_mps.guardian.takedown import CLOSING_SECONDS, end_workers
from ts_mps.guardian.watch.act import TERMINATE_SECONDS
from ts_mps.guardian.watch.seen import Seen
from ts_mps.guardian.watch.watch import Watch
from ts_mps.mps.daemon import Lease
from ts_mps.plan.model import Plan

#: Seconds that a question to TorchServe may hold up a turn.
API_SECONDS = 5.0
#: Seconds that one of a repair may take: for a description TorchServe runs one nvidia-smi after the other.
REPAIR_API_SECONDS = 20.0
#: Turns that may fail in a row before the guardian does not count as alive any more.
FAILED_TURNS = 30
#: Seconds between two looks at whether what is waited for is over.
PAUSE = 0.05


class Keeper:
    """Keeps one instance that serves.

    Args:
        prepared: Its start.
        state: What runs.
        server: java.
        leases: UUID -> the lease on its daemon; empty without MPS.
        report: Told what is no event, in a sentence each.
        log: Told each event.
        alive: Tells the service manager that the guardian is at work.
    """

    def __init__(
        self,
        prepared: Prepared,
        state: State,
        server: Server,
        leases: Mapping[str, Lease],
        report: Callable[[str], None],
        log: Callable[[Event], None],
        alive: Callable[[], None],
    ) -> None:
        self.state = state
        self.server = server
        self._prepared = prepared
        self._report = report
        self._alive = alive
        self._expected = expected(prepared)
        api = state.endpoints.api(REPAIR_API_SECONDS)
        self._watch = Watch(prepared.home, prepared.paths, prepared.plan, leases, api, log)
        self._changer = Changer(prepared, state, self._watch.tell, self._adopt, self._watch.lost_loading)
        self._ends: tuple[float, ...] = ()
        self._restart_at: float | None = None
        self._restarts = 0
        self._scaled = state.phase != "recovering"
        self._broken = ""
        self._failed_turns = 0
        self._closed = False
        self._settle_by = time.monotonic() + prepared.arguments.wait_timeout

    @property
    def acting(self) -> bool:
        """Whether child processes run that threads wait for: nobody else may collect them."""
        return self._watch.acting or self._changer.busy

    def check_java(self) -> int | None:
        """See whether java lives, and arrange for its next start where it does not.

        Returns:
            The exit code where the instance is at its end: 0 if java was told to end, 1 if it is not started again;
            None while it goes on.
        """
        ended = self.server.ended() if self._restart_at is None else None
        return None if ended is None else self._ended(ended)

    def turn(self) -> None:
        """Do what is due. A failure is reported and tried again: the watch itself must not end what it watches."""
        try:
            self._turn()
            self._broken, self._failed_turns = "", 0
        except Exception as error:
            self._failed_turns += 1
            if self._broken != repr(error):
                self._broken = repr(error)
                self._report(traceback.format_exc())
                self._watch.tell(Event("watch-failed", f"A look of the guardian failed: {error!r}"))

    def alive(self) -> None:
        """Give a sign of life; none where turn after turn fails: the next guardian takes over what serves."""
        if self._failed_turns < FAILED_TURNS:
            self._alive()

    def close(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """End the watch, and the change that is under way; takes no longer than :data:`CLOSING_SECONDS`, and only once.

        Args:
            hurry: Asked while it waits; True ends the wait.
        """
        if self._closed:
            return
        self._closed = True
        self._changer.close(0.0)
        self._watch.close(0.0)
        deadline = time.monotonic() + CLOSING_SECONDS
        while self.acting and not hurry() and time.monotonic() < deadline:
            time.sleep(PAUSE)

    def reload(self) -> None:
        """Put in force what plan file or settings say now."""
        self._changer.reload()

    def _adopt(self, plan: Plan) -> None:
        """Go by another plan: the watch, and a java that has to be started again."""
        models = with_planned_workers(self._prepared.models, plan)
        self._prepared = replace(self._prepared, plan=plan, models=models)
        self._expected = expected(self._prepared)
        self._watch.replan(plan)

    def _turn(self) -> None:
        if self._restart_at is not None and time.monotonic() >= self._restart_at:
            self._start_again()
        alive = self._restart_at is None and self.server.ended() is None
        self._changer.turn(serving=alive and self.state.phase == "serving")
        seen = self._watch.turn(java=alive, java_restarts=self._restarts, change=self._changer.underway)
        self._note_daemons()
        if alive and self.state.phase == "recovering":
            self._settle(seen)

    def _ended(self, ended: Ended) -> int | None:
        if ended.told:
            return 0
        text = f"TorchServe ended by itself {ended.how}."
        self._ends = (*self._ends, time.monotonic())
        seconds = pause(self._ends, time.monotonic())
        if seconds is None:
            text = f"{text} It did so {len(PAUSES) + 1} times in a row and is not started again."
            self._watch.tell(Event("java-gone", text))
            self.state = self.state.to("stopping", text)
            return 1
        self._watch.tell(Event("java-gone", f"{text} It is started again in {seconds:g} s."))
        self._restart_at = time.monotonic() + seconds
        if self.state.phase != "recovering":
            self._become(self.state.to("recovering", why=text))
        return None

    def _start_again(self) -> None:
        """Start java with the same configuration, once the workers of the one before are gone: they hold the slots."""
        paths = self._prepared.paths
        end_workers(self._prepared.home, paths, self.state, self._report, answer_s=TERMINATE_SECONDS, pause=self._pause)
        pid_path = Path(self.state.pid_file)
        self.server = Server.start(self._prepared, pid_path, again=True)
        self._restart_at = None
        self._restarts += 1
        self._scaled = not self._expected.scale
        self._settle_by = time.monotonic() + self._prepared.arguments.wait_timeout
        self._become(replace(self.state, java=self.server.process))
        with suppress(TsMpsError):  # `torchserve --stop` will not find it; that is no reason not to serve
            note_pid(pid_path, self.server)

    def _pause(self, seconds: float) -> None:
        """Sleep in the middle of a turn that takes long."""
        self.alive()
        time.sleep(seconds)

    def _settle(self, seen: Seen) -> None:
        """Serving again once TorchServe was asked for all workers and every place has one that is ready.

        Or once ``--wait-timeout`` is over: one worker that never loads must keep nobody from the others, nor from the
        change that mends it.
        """
        self._scaled = self._scaled or scale_as_asked(self.state.endpoints.api(API_SECONDS), self._expected)
        if self._scaled and self._watch.settled(seen):
            took = time.monotonic() - self.state.clock
            self._become(self.state.to("serving"))
            if self._ends:
                text, cause = f"TorchServe serves as planned again, {took:.1f} s after it had ended.", "java-gone"
            else:
                text, cause = f"TorchServe serves as planned, {took:.1f} s after it was taken over.", "guardian-gone"
            self._watch.tell(Event("recovered", text, cause=cause, seconds=round(took, 3)))
        elif self._scaled and time.monotonic() >= self._settle_by:
            self._become(self.state.to("serving"))
            seconds = self._prepared.arguments.wait_timeout
            text = f"TorchServe serves, but not as planned within {seconds:g} s: see ts-mps status."
            self._watch.tell(Event("not-recovered", text))

    def _note_daemons(self) -> None:
        """The state file names the daemons for a later stop; they change when they are brought back."""
        pids = self._watch.daemons
        gpus = tuple(replace(gpu, daemon=pids.get(gpu.uuid, gpu.daemon)) for gpu in self.state.gpus)
        if gpus != self.state.gpus:
            self._become(replace(self.state, gpus=gpus))

    def _become(self, state: State) -> None:
        self.state = state
        with suppress(OSError):  # a full disk must not end what serves
            state.save(self._prepared.paths)
