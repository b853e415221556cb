"""What the guardian saw at its last look, as a file for everyone who shows it: status, metrics, health."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from ts_mps.files import known_fields, read_json, write_json
from ts_mps.paths import InstancePaths

#: Version of its JSON form. It stays the same where fields with defaults are added.
WATCHED_VERSION = 1
#: Seconds after which a look is no longer believed. The guardian looks once a second, and waits a few for a daemon that
#: hangs.
STALE_AFTER = 10.0


@dataclass(frozen=True)
class WatchedGpu:
    """One GPU.

    Attributes:
        uuid: NVML's UUID.
        index: NVML's index.
        daemon: "running", "adopted", "gone", "hung" or "off".
        server: The server's state as MPS gives it (ACTIVE, FAULT, ...); "none" before the first client; "" where MPS is
            off or the daemon does not answer.
        clients: Processes in the client list, those of other instances included; 0 where the daemon does not answer.
        cap: Clients that the server takes; None where MPS is off.
        lost: Why the GPU cannot be used, as a sentence; empty if it can.
    """

    uuid: str
    index: int
    daemon: str
    server: str
    clients: int
    cap: int | None
    lost: str = ""


@dataclass(frozen=True)
class WatchedModel:
    """Workers of one model.

    Attributes:
        name: Registered model name.
        planned: Slots of the plan.
        ready: Workers that have loaded.
        attached: Of these, those in their daemon's client list right now, and none whose daemon does not answer; all of
            them where MPS is off.
        held: Slots that are held back after faults, by the reason as a sentence.
        restarts: Workers that were replaced since the start, by cause.
        hidden: Of those that are ready, those that do not let the guardian see what they are at.
    """

    name: str
    planned: int
    ready: int
    attached: int
    held: Mapping[str, int] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)
    hidden: int = 0


@dataclass(frozen=True)
class Watched:
    """One look.

    Attributes:
        java: Whether TorchServe's frontend lives.
        java_restarts: How often it was started again.
        gpus: GPUs in use.
        models: Models of the plan.
        faults: How often each happened since the start, by "KIND GPU-UUID" (no UUID where there is no GPU).
        recovery_seconds: How long the last recoveries took, newest last, at most 100.
        took: Seconds that the look took.
        changing: What is being changed on purpose, as a part of a sentence; empty where nothing is.
        at: Seconds since the epoch.
        clock: The same by time.monotonic(), to tell its age: nobody sets it.
    """

    java: bool
    java_restarts: int
    gpus: tuple[WatchedGpu, ...]
    models: tuple[WatchedModel, ...]
    faults: Mapping[str, int] = field(default_factory=dict)
    recovery_seconds: tuple[float, ...] = ()
    took: float = 0.0
    changing: str = ""
    at: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.monotonic)

    def fresh(self, now: float) -> bool:
        """Whether it is to be believed at this time of its :attr:`clock`. One of the future is of another boot."""
        return 0 <= now - self.clock <= STALE_AFTER

    def save(self, paths: InstancePaths) -> None:
        """Write it in one step.

        Raises:
            OSError: The disk is full, or the folder is gone.
        """
        write_json(paths.watched, {"version": WATCHED_VERSION, **asdict(self)})


def load_watched(paths: InstancePaths) -> Watched | None:
    """The last look; None if there was none, or none that can be read: its guardian is of another version."""
    value: dict[str, Any] | None = read_json(paths.watched)
    # Without its clock nobody can tell how old it is.
    if value is None or value.get("version") != WATCHED_VERSION or "clock" not in value:
        return None
    with suppress(KeyError, TypeError):
        value["gpus"] = tuple(WatchedGpu(**known_fields(WatchedGpu, gpu)) for gpu in value["gpus"])
        value["models"] = tuple(WatchedModel(**known_fields(WatchedModel, model)) for model in value["models"])
        value["recovery_seconds"] = tuple(value["recovery_seconds"])
        return Watched(**known_fields(Watched, value))
    return None
