"""One guardian per instance: brings it up, keeps looking, takes it down. The order is the design's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from ts_mps.errors import TsMpsError
from ts_mps.events import Event
from ts_mps.files import try_lock
from ts_mps.guardian.health import Health
from ts_mps.guardian.keeper import Keeper
from ts_mps.guardian.launch import expected, first_state, unwritable, write_folder
from ts_mps.guardian.notify import Notifier
from ts_mps.guardian.prepare import Prepared
from ts_mps.guardian.ready import Evidence, wait_ready
from ts_mps.guardian.server import Server, note_pid
from ts_mps.guardian.signals import Interrupted, Signals
from ts_mps.guardian.state import State
from ts_mps.guardian.stop import drain_asked
from ts_mps.guardian.takedown import longest, take_down
from ts_mps.mps.daemon import Lease, acquire, adopt
from ts_mps.processes import ProcessId

#: Seconds between two looks at what runs.
LOOK_EVERY = 1.0
#: Seconds between two tries to write during a start.
SAVE_EVERY = 2.0


class Guardian:
    """Starts one instance and keeps it.

    Args:
        prepared: A start that has passed its checks.
        report: Told each step, in a few words.
        log: Told each event.
    """

    def __init__(self, prepared: Prepared, report: Callable[[str], None], log: Callable[[Event], None]) -> None:
        self._prepared = prepared
        self._tell = report
        self._log = log
        self._leases: dict[str, Lease] = {}
        self._server: Server | None = None
        self._notifier = Notifier.from_environment(prepared.environ)
        self._state = first_state(prepared)
        self._next_save = 0.0

    def run(self, ready: Callable[[], None]) -> int:
        """Start, call ``ready``, and serve until told to end.

        Returns:
            The exit code: 0 after a stop that was asked for, 1 if TorchServe ended by itself, 128 + N if signal N
            came during the start.

        Raises:
            TsMpsError: The start failed; everything that was started has been stopped again.
        """
        try:
            lock = try_lock(self._prepared.paths.guardian_lock, attempts=5)
        except OSError as error:
            raise unwritable(self._prepared, error) from error
        if lock is None:
            raise TsMpsError(f"Instance {self._prepared.paths.name} is already being started.")
        try:
            with self._health(), Signals() as signals:
                return self._run(signals, ready)
        finally:
            os.close(lock)

    def _health(self) -> AbstractContextManager[object]:
        address = self._prepared.arguments.health_address
        return Health(self._prepared.paths, *address) if address else nullcontext()

    def _run(self, signals: Signals, ready: Callable[[], None]) -> int:
        if self._prepared.taken_over is not None:
            # Outside of what is undone: where this fails, what serves is left to serve.
            self._take_over()
            return self._serve(signals, ready)
        try:
            self._start(signals)
        except Interrupted as interrupted:
            self._state = self._state.to("stopping", f"{interrupted} came during the start.")
            self._stopping(drain=0.0)
            self._down(signals, drain=0.0)
            return 128 + interrupted.signum
        except TsMpsError as error:
            self._undo(signals, error.what)
            raise
        except OSError as error:
            failure = unwritable(self._prepared, error)
            self._undo(signals, failure.what)
            raise failure from error
        except BaseException as error:
            self._undo(signals, f"The guardian failed: {error!r}")
            raise
        return self._serve(signals, ready)

    def _serve(self, signals: Signals, ready: Callable[[], None]) -> int:
        try:
            # Nobody may read any more (`ts-mps start --foreground | head`); it serves all the same.
            with suppress(OSError):
                ready()
            self._notifier.ready()
            return self._keep(signals)
        except BaseException as error:
            self._undo(signals, f"The guardian failed: {error!r}")
            raise

    def _report(self, text: str) -> None:
        with suppress(OSError):  # a closed stderr must not keep anything from being taken down
            self._tell(text)

    def _undo(self, signals: Signals, error: str) -> None:
        self._state = self._state.to("stopping", error)
        self._stopping(drain=0.0)
        self._down(signals, drain=0.0)

    def _start(self, signals: Signals) -> None:
        prepared = self._prepared
        write_folder(prepared, self._state)
        self._state.save(prepared.paths)
        if prepared.mps.on:
            for gpu in prepared.gpus:
                self._report(f"GPU {gpu.index}: starting the MPS daemon")
                self._lease(gpu.uuid)
                signals.check()
        self._report("starting TorchServe")
        pid_path = Path(self._state.pid_file)
        self._server = Server.start(prepared, pid_path, again=False)
        self._become(replace(self._state, java=self._server.process))
        note_pid(pid_path, self._server)
        wait_ready(
            prepared.paths,
            self._state.endpoints.api(),
            expected(prepared),
            self._evidence(),
            timeout=prepared.arguments.wait_timeout,
            java_status=self._server.status,
            pause=lambda seconds: self._pause(signals, seconds),
            report=self._report,
        )
        self._become(self._state.to("serving"))

    def _take_over(self) -> None:
        """Go on with what serves: nothing is stopped, and nothing is started that runs.

        Raises:
            TsMpsError: A daemon that is gone does not come back; what serves is left as it is.
        """
        prepared = self._prepared
        self._server = Server(self._state.java, None, Path(self._state.pid_file))
        if prepared.mps.on:
            for gpu in prepared.gpus:
                self._report(f"GPU {gpu.index}: taking over the MPS daemon")
                self._lease(gpu.uuid)
        began = self._state.phase == "serving"
        why = "" if began else "The guardian before this one died before all was ready."
        self._become(self._state.to("serving" if began else "recovering", why=why))

    def _pause(self, signals: Signals, seconds: float) -> None:
        """Sleep during the start, and write now and then: a worker on a full disk could not even say what it met."""
        signals.check(seconds)
        if time.monotonic() >= self._next_save:
            self._next_save = time.monotonic() + SAVE_EVERY
            self._state.save(self._prepared.paths)

    def _become(self, state: State) -> None:
        self._state = state
        state.save(self._prepared.paths)

    def _lease(self, uuid: str) -> None:
        prepared = self._prepared
        gpu = next(gpu for gpu in prepared.gpus if gpu.uuid == uuid)
        files = prepared.home.gpu(uuid)
        if prepared.mps.adopted_pipe is not None:
            lease = adopt(prepared.mps.adopted_pipe, gpu, environ=prepared.environ)
        else:
            lease = acquire(
                gpu,
                files,
                prepared.paths.name,
                environ=prepared.environ,
                exclusive=prepared.arguments.exclusive,
                taken_over=prepared.taken_over is not None,
            )
        self._leases[uuid] = lease
        daemon = ProcessId.of(lease.daemon.pid) if lease.daemon.pid else None
        self._become(
            replace(
                self._state,
                gpus=tuple(replace(g, daemon=daemon) if g.uuid == uuid else g for g in self._state.gpus),
            )
        )

    def _evidence(self) -> Evidence:
        prepared = self._prepared
        console = None if prepared.arguments.foreground else prepared.paths.console
        return Evidence(console, prepared.folder / prepared.environ.get("LOG_LOCATION", "logs"))

    def _keep(self, signals: Signals) -> int:
        assert self._server is not None  # the start, or the take-over, is over
        keeper = Keeper(
            self._prepared,
            self._state,
            self._server,
            self._leases,
            self._report,
            self._log,
            self._notifier.alive,
        )
        try:
            return self._loop(signals, keeper)
        finally:
            keeper.close()

    def _loop(self, signals: Signals, keeper: Keeper) -> int:
        """Signals at once, a turn once a second. A dead child of the control program wakes us too, hence the clock."""
        next_turn = time.monotonic()
        while True:
            ending = signals.wait(max(0.0, next_turn - time.monotonic()))
            self._state, self._server = keeper.state, keeper.server
            if signals.hung_up():
                keeper.reload()
            if ending:
                drain = drain_asked(self._prepared.paths, self._state)
                self._stopping(drain)
                with suppress(OSError):  # who asks for a stop now shall wait, and not hurry this one
                    self._become(self._state.to("stopping"))
                keeper.close(signals.hurried)
                self._down(signals, drain=drain)
                return 0
            if not keeper.acting:
                self._reap()
            code = keeper.check_java()
            if code is not None:
                self._state = keeper.state
                self._stopping(drain=0.0)
                keeper.close()
                self._down(signals, drain=0.0)
                return code
            if keeper.server.nameless:
                with suppress(TsMpsError):  # `torchserve --stop` will not find it; that is no reason not to serve
                    note_pid(Path(self._state.pid_file), keeper.server)
            keeper.alive()
            self._notifier.status(": ".join(filter(None, (keeper.state.phase, keeper.state.why))))
            if time.monotonic() >= next_turn:
                next_turn = time.monotonic() + LOOK_EVERY
                keeper.turn()

    def _stopping(self, drain: float) -> None:
        """Tell the service manager, before anything is waited for, which else goes by a time limit of its own."""
        self._notifier.stopping()
        self._notifier.extend(longest(drain))
        self._notifier.status("stopping")

    def _down(self, signals: Signals, drain: float) -> None:
        left = take_down(
            self._prepared.home,
            self._prepared.paths,
            self._state,
            self._leases,
            drain=drain,
            report=self._report,
            hurry=signals.hurried,
        )
        self._reap()
        for sentence in left:
            self._report(sentence)

    def _reap(self) -> None:
        """Collect dead children that are not java: as PID 1 of a container we inherit everyone's orphans."""
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            if self._server is not None and dead.si_pid == self._server.pid:
                # Popen must collect it itself, or it never learns the status.
                self._server.status()
            else:
                os.waitpid(dead.si_pid, 0)
