"""One change at a time, in a thread beside the guardian's loop; whoever asks for a second one meanwhile is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ts_mps.activity import Attention
from ts_mps.errors import PlanError, TsMpsError
from ts_mps.events import Event
from ts_mps.files import write_json
from ts_mps.guardian.change.course import bring_in, roll
from ts_mps.guardian.change.crew import Crew
from ts_mps.guardian.change.exchange import Answer, Change, Exchange, waiting
from ts_mps.guardian.change.merge import differ, keys, merge
from ts_mps.guardian.change.replan import named, reread, rescaled
from ts_mps.guardian.change.stage import Ended, Stage
from ts_mps.guardian.prepare import Prepared
from ts_mps.guardian.state import State
from ts_mps.guardian.watch.seen import NO_CHANGE, Underway
from ts_mps.plan.model import Plan
from ts_mps.torchserve.threads import to_ask_for
from ts_mps.worker_records import records, workers

#: Seconds for the guardian's loop to take a new plan over; it has a turn every second.
TURN_SECONDS = 30.0
#: Seconds after a change in which the watch has seen everybody go who was asked to.
FORGET_SECONDS = 60.0


@dataclass
class _Job:
    """A change under way, and the file through which it is followed; a reload by SIGHUP has none."""

    change: Change
    exchange: Exchange | None
    answer: Answer = field(default_factory=Answer)


class Changer:
    """Changes one instance as it is asked to.

    Args:
        prepared: Its start.
        state: What runs.
        tell: Told events.
        adopt: Takes a new plan over; called in the guardian's loop.
        lost_loading: When the watch last saw a worker of a model go that had not loaded, seconds of time.monotonic().
    """

    def __init__(
        self,
        prepared: Prepared,
        state: State,
        tell: Callable[[Event], None],
        adopt: Callable[[Plan], None],
        lost_loading: Callable[[str], float],
    ) -> None:
        self._prepared = prepared
        self._paths = prepared.paths
        self._plan = prepared.plan
        self._plan_file = ""
        self._api = state.endpoints.api()
        self._tell = tell
        self._adopt = adopt
        self._lost_loading = lost_loading
        self._serving = True
        self._closing = threading.Event()
        self._offered: Plan | None = None
        self._taken = threading.Event()
        self._reload = False
        self._job: _Job | None = None
        self._stage: Stage | None = None
        self._thread: threading.Thread | None = None
        self._over = 0.0

    @property
    def busy(self) -> bool:
        """Whether a change is under way."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def underway(self) -> Underway:
        """What the watch must know, so that it takes nothing for a fault that is done on purpose."""
        job, stage = self._job, self._stage
        if job is None or stage is None:
            return NO_CHANGE
        if not self.busy:
            # The watch may not have seen the last one go. Later the pid may be another's.
            return Underway(asked=dict(stage.asked)) if time.monotonic() - self._over < FORGET_SECONDS else NO_CHANGE
        return Underway(str(job.change), frozenset(stage.models), dict(stage.asked))

    def reload(self) -> None:
        """Reload at the next turn, as SIGHUP asks."""
        self._reload = True

    def turn(self, *, serving: bool) -> None:
        """Take over the plan of the change that is under way, and begin the next change.

        Args:
            serving: Whether TorchServe serves; else nothing is begun, and what is under way ends.
        """
        self._serving = serving
        if self._offered is not None:
            self._adopt(self._offered)
            self._plan, self._offered = self._offered, None
            self._taken.set()
        for exchange in waiting(self._paths):
            change = exchange.take()
            if change is None:
                exchange.clear()
            elif (why := self._refusal()) is not None:
                with suppress(OSError):
                    exchange.answer(Answer().failed("refused", why))
            else:
                self._begin(_Job(change, exchange))
        if self._reload and not self.busy and serving:
            self._reload = False
            self._begin(_Job(Change("reload"), None))

    def close(self, seconds: float) -> None:
        """End what is under way, as the instance is being stopped; waits at most so long for it."""
        self._closing.set()
        self._taken.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _refusal(self) -> TsMpsError | None:
        if self.busy and self._job is not None:
            return TsMpsError(f"A change is under way: {self._job.change}.", "Try again when it is over.")
        if not self._serving:
            return TsMpsError("TorchServe is just being started again.", "Try again when it serves; see ts-mps status.")
        return None

    def _begin(self, job: _Job) -> None:
        self._job = job
        self._stage = Stage(
            prepared=replace(self._prepared, plan=self._plan),
            plan=self._plan,
            api=self._api,
            say=lambda text: self._say(job, text),
            put_in_force=self._put_in_force,
            check=self._check,
            end_wished=lambda: job.exchange is not None and job.exchange.end_wished,
            lost_loading=self._lost_loading,
        )
        self._thread = threading.Thread(target=self._run, args=(job, self._stage), name="change", daemon=True)
        self._thread.start()

    def _run(self, job: _Job, stage: Stage) -> None:
        try:
            self._carry_out(job, stage)
            self._end(job, replace(job.answer, state="done"), "change-done", f"Done: {job.change}.")
        except Ended as error:
            self._end(job, job.answer.failed("ended", error), "change-ended", f"{error.what} ({job.change})")
        except TsMpsError as error:
            state = "failed" if job.answer.said else "refused"
            self._end(job, job.answer.failed(state, error), f"change-{state}", f"Not done: {job.change}. {error}")
        except Exception as error:
            failure = TsMpsError(f"The change failed: {error!r}", f"See {self._paths.guardian_log}.")
            self._end(job, job.answer.failed("failed", failure), "change-failed", f"{failure.what} ({job.change})")
            raise
        finally:
            # Whoever has not gone was not asked after all, or served on: its end would be another matter.
            living = {worker.pid for worker in workers(self._paths)}
            stage.asked = {pid: why for pid, why in stage.asked.items() if pid not in living}
            self._over = time.monotonic()
            if not self._closing.is_set():  # else the drain of the stop has asked for their attention by now
                for key in keys(stage.plan):
                    Crew(stage, key).heed(Attention.NONE)

    def _carry_out(self, job: _Job, stage: Stage) -> None:
        change = job.change
        if change.what == "restart":
            model = named(stage.plan, change.model) if change.model else None
            self._tell(Event("change-begun", f"Begun: {change}."))
            roll(stage, model)
        elif change.what == "scale":
            model = named(stage.plan, change.model)
            wanted = rescaled(stage.prepared, stage.plan, model, change.workers)
            threads = Crew(stage, model).threads()
            last = {thread.pid for thread in threads[to_ask_for(threads, change.workers) :]}
            new = self._merged(stage, wanted, brothers=True, last=last)
            self._tell(Event("change-begun", f"Begun: {change}.", model=model[0]))
            bring_in(stage, new, about=model)
        else:
            file = change.plan or self._plan_file
            wanted = reread(stage.prepared, stage.plan, file)
            new = self._merged(stage, wanted, brothers=False, last=set())
            if not differ(stage.plan, new):
                stage.say("The plan is the one in force: no worker has to change.")
            self._tell(Event("change-begun", f"Begun: {change}."))
            bring_in(stage, new)
            self._plan_file = file

    def _merged(self, stage: Stage, wanted: Plan, *, brothers: bool, last: set[int]) -> Plan:
        seen = tuple(record for record, _ in records(self._paths))
        taken = {record.slot.number for record in seen}
        first_out = {record.slot.number for record in seen if record.pid in last}
        return merge(stage.plan, wanted, taken=taken, first_out=first_out, brothers=brothers)

    def _put_in_force(self, plan: Plan) -> None:
        """Let workers that come, and the guardian's loop, go by a plan; returns once both do.

        Raises:
            PlanError: It cannot be written.
            Ended: The instance is being stopped.
        """
        self._taken.clear()
        self._check()  # after it: a stop sets it, and must not be waited past
        try:
            write_json(self._paths.plan, plan.as_json())
        except OSError as error:
            raise PlanError(f"The plan {self._paths.plan} cannot be written: {error.strerror or error}.") from error
        self._offered = plan
        if not self._taken.wait(TURN_SECONDS):
            raise TsMpsError(f"The guardian did not take the new plan over within {TURN_SECONDS:g} s.")
        self._check()

    def _check(self) -> None:
        if self._closing.is_set():
            raise Ended("The instance is being stopped, so the change ends.")
        if not self._serving:
            raise Ended("TorchServe ended by itself, so the change ends.", "See ts-mps status and ts-mps events.")

    def _say(self, job: _Job, text: str) -> None:
        job.answer = replace(job.answer, said=(*job.answer.said, text))
        self._answer(job)

    def _end(self, job: _Job, answer: Answer, kind: str, text: str) -> None:
        job.answer = answer
        self._tell(Event(kind, text))
        self._answer(job)

    def _answer(self, job: _Job) -> None:
        if job.exchange is not None:
            with suppress(OSError):  # a full disk, or the verb has gone and taken its files along
                job.exchange.answer(job.answer)
