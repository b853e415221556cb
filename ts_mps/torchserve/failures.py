"""Workers that did not load, written by the worker itself: TorchServe only logs them and tries again for minutes."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from ts_mps.files import known_fields, read_json, write_json
from ts_mps.paths import InstancePaths

#: Kept on disk; a crash loop must not fill the runtime folder.
KEPT = 32


@dataclass(frozen=True)
class WorkerFailure:
    """One failed load.

    Attributes:
        pid: The worker's process id.
        model: Registered model name.
        version: Model version, if known.
        what: The exception or the refusal, one line.
        traceback: The worker's traceback, or a refusal's details; may be empty.
        again: Whether the next worker in its place may well load.
        clock: Seconds of time.monotonic(), to reckon with: nobody sets it.
        time: Seconds since the epoch.
    """

    pid: int
    model: str
    version: str | None
    what: str
    traceback: str
    again: bool = False
    clock: float = field(default_factory=time.monotonic)
    time: float = field(default_factory=time.time)


def record_failure(instance: InstancePaths, failure: WorkerFailure) -> None:
    """Write the failure into the instance's folder, dropping the oldest past :data:`KEPT`."""
    instance.failures.mkdir(exist_ok=True)
    write_json(instance.failures / f"{failure.clock:016.3f}-{failure.pid}.json", asdict(failure))
    for old in sorted(instance.failures.glob("*.json"))[:-KEPT]:
        old.unlink(missing_ok=True)


def failures(instance: InstancePaths, since: float = 0.0) -> tuple[WorkerFailure, ...]:
    """The failures recorded since a time of their :attr:`~WorkerFailure.clock`, oldest first.

    One that a worker of another version wrote and that cannot be read is left out.
    """
    found = []
    for path in sorted(instance.failures.glob("*.json")):
        value = read_json(path)
        if value is not None and value.get("clock", float("-inf")) >= since:
            with suppress(TypeError):
                found.append(WorkerFailure(**known_fields(WorkerFailure, value)))
    return tuple(found)
