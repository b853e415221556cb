"""One guardian per instance: brings it up, keeps looking, takes it down. The order is the design's."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ts_mps.errors import PreflightError, TsMpsError
from ts_mps.files import read_json, try_lock
from ts_mps.guardian.launch import expected, first_state, write_folder
from ts_mps.guardian.prepare import Prepared, server_command
from ts_mps.guardian.ready import Evidence, wait_ready
from ts_mps.guardian.signals import Interrupted, Signals
from ts_mps.guardian.state import State
from ts_mps.guardian.takedown import take_down
from ts_mps.mps.daemon import Lease, acquire, adopt
from ts_mps.processes import ProcessId
from ts_mps.torchserve import pid_file
from ts_mps.torchserve.command import server_environment

#: Seconds between two looks at what runs.
LOOK_EVERY = 1.0
#: Seconds between two tries to write during a start.
SAVE_EVERY = 2.0
#: Statuses with which java ends when it was told to: a JVM answers SIGTERM with 143 and SIGINT with 130.
TOLD_TO_END = (0, 130, 143)


def unwritable(prepared: Prepared, error: OSError) -> PreflightError:
    """The sentence for a runtime folder that cannot be written, usually because the disk is full."""
    return PreflightError(
        f"The start could not write {error.filename or prepared.paths.root}: {error.strerror}.",
        f"Make room on the file system of {prepared.home.root}, or choose another with --runtime-dir.",
    )


class Guardian:
    """Starts one instance and keeps it.

    Args:
        prepared: A start that has passed its checks.
        report: Told each step, in a few words.
    """

    def __init__(self, prepared: Prepared, report: Callable[[str], None]) -> None:
        self._prepared = prepared
        self._tell = report
        self._leases: dict[str, Lease] = {}
        self._java: subprocess.Popen[bytes] | None = None
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
            with Signals() as signals:
                return self._run(signals, ready)
        finally:
            os.close(lock)

    def _run(self, signals: Signals, ready: Callable[[], None]) -> int:
        try:
            self._start(signals)
        except Interrupted as interrupted:
            self._state = self._state.to("stopping", f"{interrupted} came during the start.")
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
        try:
            with suppress(
                OSError
            ):  # nobody reads any more (`ts-mps start --foreground | head`); it serves all the same
                ready()
            return self._watch(signals)
        except BaseException as error:
            self._undo(signals, f"The guardian failed: {error!r}")
            raise

    def _report(self, text: str) -> None:
        with suppress(OSError):  # a closed stderr must not keep anything from being taken down
            self._tell(text)

    def _undo(self, signals: Signals, error: str) -> None:
        self._state = self._state.to("stopping", error)
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
        self._spawn()
        wait_ready(
            prepared.paths,
            self._state.endpoints.api(),
            expected(prepared),
            self._evidence(),
            timeout=prepared.arguments.wait_timeout,
            java_status=self._java_status,
            pause=lambda seconds: self._pause(signals, seconds),
            report=self._report,
        )
        self._become(self._state.to("serving"))

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
            )
        self._leases[uuid] = lease
        daemon = ProcessId.of(lease.daemon.pid) if lease.daemon.pid else None
        self._become(
            replace(
                self._state,
                gpus=tuple(replace(g, daemon=daemon) if g.uuid == uuid else g for g in self._state.gpus),
            )
        )

    def _spawn(self) -> None:
        prepared = self._prepared
        command = server_command(prepared.arguments, prepared.paths, prepared.environ, prepared.java.path)
        environ = server_environment(
            prepared.environ,
            config=prepared.paths.config,
            gpus=[gpu.index for gpu in prepared.gpus],
            bin_folder=prepared.paths.bin,
        )
        output = None if prepared.arguments.foreground else prepared.paths.console.open("wb")
        try:
            # A session of its own: Ctrl-C must reach the guardian only, or every worker dies inside a kernel.
            self._java = subprocess.Popen(
                command,
                cwd=prepared.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()
        self._become(replace(self._state, java=ProcessId.of(self._java.pid)))
        pid_file.write(Path(self._state.pid_file), self._java.pid)

    def _java_status(self) -> int | None:
        return self._java.poll() if self._java is not None else None

    def _evidence(self) -> Evidence:
        prepared = self._prepared
        console = None if prepared.arguments.foreground else prepared.paths.console
        return Evidence(console, prepared.folder / prepared.environ.get("LOG_LOCATION", "logs"))

    def _watch(self, signals: Signals) -> int:
        while True:
            ending = signals.wait(LOOK_EVERY)
            if ending:
                asked = read_json(self._prepared.paths.stop_request) or {}
                drain = float(asked.get("drain_timeout", self._state.drain_timeout))
                self._down(signals, drain=drain)
                return 0
            self._reap()
            status = self._java_status()
            if status is None:
                continue
            if status not in TOLD_TO_END:
                self._state = self._state.to("stopping", f"TorchServe ended by itself with status {status}.")
            self._down(signals, drain=0.0)
            return 0 if status in TOLD_TO_END else 1

    def _down(self, signals: Signals, drain: float) -> None:
        left = take_down(
            self._prepared.home,
            self._prepared.paths,
            self._state,
            self._leases,
            drain=drain,
            report=self._report,
            hurry=lambda: bool(signals.wait(0.0)),
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
            if self._java is not None and dead.si_pid == self._java.pid:
                # Popen must collect it itself, or it never learns the status.
                self._java.poll()
            else:
                os.waitpid(dead.si_pid, 0)
