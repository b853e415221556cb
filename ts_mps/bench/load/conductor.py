"""Locust's events around the load: the plan goes out to all processes, their counts come back and become a result."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from ts_mps.bench.load.bodies import given_bodies, read_bodies
from ts_mps.bench.load.dying import leave
from ts_mps.bench.load.options import the_spec, write_the_bodies
from ts_mps.bench.load.part import Part, Turn
from ts_mps.bench.load.references import record
from ts_mps.bench.load.sharers import ALONE, Sharers
from ts_mps.bench.load.show import table
from ts_mps.bench.load.spec import Spec
from ts_mps.bench.load.tally import result
from ts_mps.errors import TsMpsError
from ts_mps.files import write_json

#: The names of our messages to the processes, and of our part of their reports.
_PLAN = "ts-mps plan"
_STOP = "ts-mps stop"
_REPORT = "ts_mps"
#: Seconds from the plan to the first request: for the message to arrive, payloads to be read and users to start.
_AHEAD_S = 0.5
#: Seconds between looks for what `ts-mps bench` hands over.
_GATE_S = 0.02
#: Seconds between looks for processes that have died.
_LOOK_S = 0.5
_GONE = "A process of the load generator has died or left."


class Conductor:
    """One of Locust's processes: a worker makes its part of the load, the master collects, a single one does both."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        runner = environment.runner
        assert runner is not None
        self._runner = runner
        self._options: Any = environment.parsed_options
        self.part: Part | None = None
        self._running: gevent.Greenlet | None = None
        self._last: dict[str, Any] | None = None
        self._run = 0
        self._spec: Spec | None = None
        self._sharers = Sharers(runner)
        self._first = 0.0
        self._cpu_before = 0.0
        self._finished = self._stopping = True
        events = environment.events
        if isinstance(runner, WorkerRunner):
            runner.register_message(_PLAN, self._on_plan)
            events.report_to_master.add_listener(self._on_report)
            # Before it says goodbye to the master; `test_stop` follows, and finds nothing to do.
            events.quitting.add_listener(self._break_off)
            events.test_stop.add_listener(self._break_off)
            runner.register_message(_STOP, self._break_off)
            return
        if isinstance(runner, MasterRunner):
            events.worker_report.add_listener(self._on_worker_report)
        # What `ts-mps bench` handed over lies in a folder that it removes itself.
        self._scratch = Path(tempfile.mkdtemp(prefix="ts-mps-locust-")) if not self._options.spec else Path()
        events.quit.add_listener(lambda **_: self._tidy())
        events.test_start.add_listener(self._on_start)
        events.test_stopping.add_listener(self._on_stopping)
        events.test_stop.add_listener(self._on_stop)
        self._or_exit(lambda: write_the_bodies(self._options, self._scratch))

    # -- the master's side, or a single process's -------------------------------------------------------------------

    def _on_start(self, **_: Any) -> None:
        runner, self._run = self._runner, self._run + 1
        self._sharers.gather()
        # `ts-mps bench` starts us while its server gets ready, and hands the load over when it is.
        while self._options.spec and not Path(self._options.spec).exists():
            gevent.sleep(_GATE_S)
        try:
            spec = the_spec(self._options, runner.target_user_count, len(self._sharers.names), self._scratch)
            # Locust starts its users after this whatever becomes of it, and wants each to have a host.
            self._environment.host = spec.base_url
            if spec.check == "reference" and not spec.references.is_file():
                record(spec, read_bodies(spec.bodies))
        except (TsMpsError, OSError) as error:
            self._give_up(str(error), getattr(error, "details", ""))
            return
        self._spec, self._finished, self._stopping = spec, False, False
        # The wall clock is what processes on several machines share; on one it is exact.
        begin = time.time() + _AHEAD_S
        self._first = time.monotonic() + _AHEAD_S + spec.load.warm_up
        gevent.spawn(self._mark_cpu, self._run)
        plan = {"run": self._run, "spec": spec.as_json(), "of": spec.processes, "begin": begin}
        if not isinstance(runner, MasterRunner):
            self._take(spec, {**plan, "share": 0})
            return
        for share, worker in enumerate(self._sharers.names):
            runner.send_message(_PLAN, {**plan, "share": share}, client_id=worker)
        gevent.spawn(self._look_after, self._run)

    def _mark_cpu(self, run: int) -> None:
        gevent.sleep(max(self._first - time.monotonic(), 0))
        if run == self._run:
            self._cpu_before = time.process_time()

    def _look_after(self, run: int) -> None:
        """Locust waits for a process that has died; what is left of the load would not be what was planned."""
        before: set[str] = set()
        while True:
            gevent.sleep(_LOOK_S)
            # A process that stops is unknown to Locust's master until it has reported anew.
            if run != self._run or self._finished or self._stopping:
                return
            gone = self._sharers.gone("done")
            # Ctrl-C reaches all of them, and they may be gone before the master itself begins to stop.
            if gone & before:
                self._give_up(_GONE)
                return
            before = gone

    def _on_worker_report(self, client_id: str, data: dict[str, Any]) -> None:
        report = data.get(_REPORT)
        if report and report["run"] == self._run:
            self._sharers.reports[client_id] = report
            self._look_for_end()

    def _look_for_end(self) -> None:
        if self._finished or self._sharers.owing("done"):
            return
        self._finish()
        # Not from here: it ends the greenlet that it is called from.
        gevent.spawn(self._runner.quit if self._options.headless else self._runner.stop)

    def _on_stopping(self, **_: Any) -> None:
        self._stopping = True

    def _on_stop(self, **_: Any) -> None:
        """Stopped by hand, or by --run-time: what was counted until now is the result, but for `ts-mps bench`.

        A process hands in its last report before Locust's master forgets it, so one that is gone without it has died;
        when all have, Locust stops by itself.
        """
        run = self._run
        self._break_off()
        if not self._finished:
            # Where Locust quits, it tells them of the stop only after this.
            self._sharers.collect(_STOP)
        # The last report may have ended the load meanwhile, and the next one may have been started.
        if self._finished or run != self._run:
            return
        if self._sharers.gone("last"):
            self._give_up(_GONE)
        elif self._options.result:
            self._give_up("The load was stopped before its end.")
        elif self._sharers.owing("last"):
            self._give_up("A process of the load generator did not hand in what it counted.")
        else:
            self._finish()

    def _finish(self) -> None:
        assert self._spec is not None
        self._finished = True
        reports = list(self._sharers.reports.values())
        # As long as the processes counted, which may have stopped before we heard of it.
        seconds = max((report["seconds"] for report in reports), default=0.0)
        if not seconds:
            print("locust: It was stopped before anything was counted.", file=sys.stderr, flush=True)
            return
        own = time.process_time() - self._cpu_before if isinstance(self._runner, MasterRunner) else 0.0
        cpu = own + sum(report["cpu_seconds"] for report in reports)
        cores = len(os.sched_getaffinity(0))
        found = result(self._spec.load, reports, seconds=seconds, cpu=cpu, cores=cores)
        found = replace(found, began=time.time() - time.monotonic() + self._first)
        if self._options.result:
            write_json(Path(self._options.result), asdict(found))
            leave()
        else:
            print(table(found), flush=True)

    def _give_up(self, sentence: str, details: str = "") -> None:
        print("\n".join(filter(None, (f"locust: {sentence}", details))), file=sys.stderr, flush=True)
        self._finished = True
        self._environment.process_exit_code = 1
        gevent.spawn(self._runner.quit if self._options.headless else self._runner.stop)

    def _or_exit(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (TsMpsError, OSError) as error:
            self._tidy()
            print(f"locust: {error}", file=sys.stderr, flush=True)
            sys.exit(2)

    def _tidy(self) -> None:
        if not self._options.spec:
            shutil.rmtree(self._scratch, ignore_errors=True)

    # -- the side of a process that makes load ----------------------------------------------------------------------

    def _on_plan(self, msg: Any, **_: Any) -> None:
        spec = Spec.from_json(msg.data["spec"])
        try:
            self._take(spec, msg.data)
        except (TsMpsError, OSError) as error:
            print(f"locust: {error}", file=sys.stderr, flush=True)
            # The master sees that the process is gone, and gives up.
            os._exit(1)

    def _take(self, spec: Spec, plan: dict[str, Any]) -> None:
        self._run, self._last = plan["run"], None
        # On a machine other than the master's the payloads are those that its own command line names.
        options, here = self._options, spec.bodies.is_dir()
        named = [Path(path) for path in options.payload]
        bodies = read_bodies(spec.bodies) if here else given_bodies(named, options.content_type)
        begin = time.monotonic() + plan["begin"] - time.time()
        request = self._environment.events.request

        def watch(milliseconds: float, size: int, problem: str) -> None:
            request.fire(
                request_type="POST",
                name=spec.path,
                response_time=milliseconds,
                response_length=size,
                exception=RuntimeError(problem) if problem else None,
                context={},
                response=None,
            )

        self.part = Part(spec, Turn(plan["share"], plan["of"], begin), bodies, watch)
        self._running = gevent.spawn(self._make)

    def _make(self) -> None:
        part = self.part
        assert part is not None
        part.run()
        self._close_part(done=True)
        if not isinstance(self._runner, WorkerRunner):
            self._look_for_end()

    def _break_off(self, **_: Any) -> None:
        if self._running is not None:
            self._running.kill()
            self._close_part(done=False)

    def _close_part(self, *, done: bool) -> None:
        """Hand in what the part counted, once and for all."""
        part, self.part = self.part, None
        if part is None:
            return
        self._last = {"done": done, "last": True, "run": self._run, **part.report()}
        if isinstance(self._runner, WorkerRunner):
            data: dict[str, Any] = {}
            self._environment.events.report_to_master.fire(client_id=self._runner.client_id, data=data)
            self._runner.send_message("stats", data)
        else:
            self._sharers.reports[ALONE] = self._last

    def _on_report(self, data: dict[str, Any], **_: Any) -> None:
        if self.part is not None:
            data[_REPORT] = {"done": False, "last": False, "run": self._run, **self.part.report()}
        elif self._last is not None:
            data[_REPORT] = self._last
