"""Stopping an instance: by its guardian, or in its place where it was killed. Asking twice does no harm."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ts_mps.errors import TsMpsError
from ts_mps.files import read_json, try_lock, write_json
from ts_mps.guardian.state import State, load_state
from ts_mps.guardian.takedown import longest, take_down, worker_processes
from ts_mps.paths import Home, InstancePaths
from ts_mps.processes import wait_gone


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
        TsMpsError: The guardian did not end in time, or what runs is of a version that is not known here.
    """
    state = load_state(paths)
    if state is None:
        return StopResult(paths.name, was_running=False)
    seconds = state.drain_timeout if drain is None else drain
    lock = try_lock(paths.guardian_lock, attempts=5)
    if lock is None:
        _by_guardian(paths, state, seconds, report)
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


def drain_asked(paths: InstancePaths, state: State) -> float:
    """Seconds for requests in flight, as who asked for the stop wished it, else as its start said."""
    return float((read_json(paths.stop_request) or {}).get("drain_timeout", state.drain_timeout))


def _by_guardian(paths: InstancePaths, state: State, drain: float, report: Callable[[str], None]) -> None:
    guardian = state.guardian
    if guardian is None or not guardian.alive():
        # The lock is held by one that has not written its state yet.
        raise TsMpsError(f"Instance {paths.name} is just being started or stopped by somebody else.", "Try again.")
    if state.phase == "stopping" and drain > 0:
        # A second signal would end the drain that somebody else waits for.
        report(f"the guardian (pid {guardian.pid}) is stopping already")
        drain = max(drain, drain_asked(paths, state))
    else:
        with suppress(OSError):  # on a full disk the guardian drains for as long as its start said
            write_json(paths.stop_request, {"drain_timeout": drain})
        report(f"asking the guardian (pid {guardian.pid}) to stop")
        guardian.send(signal.SIGTERM)
    if wait_gone((guardian,), longest(drain)):
        raise TsMpsError(
            f"The guardian of instance {paths.name} (pid {guardian.pid}) did not end within {longest(drain):g} s.",
            f"See {paths.guardian_log}; kill -9 {guardian.pid} and ts-mps stop again cleans up without it.",
        )
