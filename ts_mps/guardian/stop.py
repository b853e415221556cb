"""Stopping an instance: by its guardian, or in its place where it was killed. Asking twice does no harm."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ts_mps.errors import TsMpsError
from ts_mps.files import try_lock, write_json
from ts_mps.guardian.state import load_state
from ts_mps.guardian.takedown import longest, take_down, worker_processes
from ts_mps.paths import Home, InstancePaths
from ts_mps.processes import ProcessId, wait_gone


@dataclass(frozen=True)
class StopResult:
    """What a stop found and did.

    Attributes:
        instance: Its name.
        was_running: False if there was nothing to stop.
        by: "guardian", "stop" (the guardian was gone) or "" where nothing ran.
        left: What could not be ended, one sentence each.
    """

    instance: str
    was_running: bool
    by: str = ""
    left: tuple[str, ...] = ()


def stop(home: Home, paths: InstancePaths, drain: float | None, report: Callable[[str], None]) -> StopResult:
    """Stop an instance and make sure that nothing of it is left.

    Args:
        home: The runtime folder.
        paths: The instance.
        drain: Seconds for requests in flight; None for what its start said.
        report: Told each step.

    Raises:
        TsMpsError: The guardian did not end in time.
    """
    state = load_state(paths)
    if state is None:
        return StopResult(paths.name, was_running=False)
    seconds = state.drain_timeout if drain is None else drain
    lock = try_lock(paths.guardian_lock, attempts=5)
    if lock is None:
        _by_guardian(paths, state.guardian, seconds, report)
        lock = try_lock(paths.guardian_lock, attempts=5)
        if lock is None:
            raise TsMpsError(f"Instance {paths.name} was started again while it was being stopped.")
        os.close(lock)
        ended = load_state(paths)
        return StopResult(paths.name, was_running=True, by="guardian", left=ended.left if ended else ())
    try:
        if state.phase in ("stopped", "failed") and not state.left and not worker_processes(home, paths):
            return StopResult(paths.name, was_running=False)
        report("the guardian is gone; cleaning up in its place")
        left = take_down(home, paths, state, {}, drain=seconds, report=report)
        return StopResult(paths.name, was_running=True, by="stop", left=left)
    finally:
        os.close(lock)


def _by_guardian(paths: InstancePaths, guardian: ProcessId | None, drain: float, report: Callable[[str], None]) -> None:
    with suppress(OSError):  # on a full disk the guardian drains for as long as its start said
        write_json(paths.stop_request, {"drain_timeout": drain})
    if guardian is None or not guardian.alive():
        # The lock is held by one that has not written its state yet.
        raise TsMpsError(f"Instance {paths.name} is just being started or stopped by somebody else.", "Try again.")
    report(f"asking the guardian (pid {guardian.pid}) to stop")
    guardian.send(signal.SIGTERM)
    if wait_gone((guardian,), longest(drain)):
        raise TsMpsError(
            f"The guardian of instance {paths.name} (pid {guardian.pid}) did not end within {longest(drain):g} s.",
            f"See {paths.guardian_log}; kill -9 {guardian.pid} and ts-mps stop again cleans up without it.",
        )
