"""What is running, as a file that outlives the guardian: enough for a later ``stop`` to take everything down."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ts_mps.errors import TsMpsError
from ts_mps.files import is_locked, known_fields, read_json, write_json
from ts_mps.paths import InstancePaths
from ts_mps.processes import ProcessId
from ts_mps.torchserve.endpoints import Endpoints

#: Version of the state's JSON form. It stays the same where fields with defaults are added.
STATE_VERSION = 1


@dataclass(frozen=True)
class GpuState:
    """A GPU in use and the daemon that serves it.

    Attributes:
        index: NVML's index.
        uuid: NVML's UUID.
        name: Product name.
        cap: MPS clients that its server takes; None where MPS is off.
        pipe: The daemon's pipe folder; None where MPS is off.
        log: The daemon's log folder, if it is ours.
        daemon: The daemon's process, if its pid is known.
        adopted: Whether somebody else started the daemon.
    """

    index: int
    uuid: str
    name: str
    cap: int | None = None
    pipe: str | None = None
    log: str | None = None
    daemon: ProcessId | None = None
    adopted: bool = False


@dataclass(frozen=True)
class State:
    """One instance.

    Attributes:
        instance: Its name.
        phase: "starting", "serving", "recovering" (TorchServe died and is started again), "stopping", "stopped" or
            "failed".
        mps: "on" or "off".
        mps_why: Why MPS is off, or how it is on; a sentence.
        guardian: The guardian's process.
        java: TorchServe's frontend, once started.
        gpus: GPUs in use, with their daemons once started.
        endpoints: Addresses and keys of TorchServe.
        folder: The working folder: TorchServe's logs and key file are there.
        config: The effective config.properties.
        config_source: The file it was made from, as a sentence.
        pid_file: TorchServe's pid file.
        drain_timeout: Seconds for requests in flight at a stop.
        worker_port: Number of the first worker's socket.
        since: When the phase was reached, seconds since the epoch.
        clock: The same by time.monotonic(), to reckon with: nobody sets it.
        error: The sentence of a failed start.
        left: What could not be ended or undone when it was taken down, one sentence each.
        why: Why it is "recovering", as a sentence; empty in other phases.
    """

    instance: str
    phase: str
    mps: str
    mps_why: str
    guardian: ProcessId | None
    gpus: tuple[GpuState, ...]
    endpoints: Endpoints
    folder: str
    config: str
    config_source: str
    pid_file: str
    drain_timeout: float
    worker_port: int
    java: ProcessId | None = None
    since: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.monotonic)
    error: str = ""
    left: tuple[str, ...] = ()
    why: str = ""

    def to(self, phase: str, error: str = "", why: str = "") -> State:
        """This state in another phase, from now on."""
        now, clock = time.time(), time.monotonic()
        return replace(self, phase=phase, since=now, clock=clock, error=error or self.error, why=why)

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {"version": STATE_VERSION, **asdict(self)}

    def save(self, paths: InstancePaths) -> None:
        """Write the state file in one step."""
        write_json(paths.state, self.as_json())


def load_state(paths: InstancePaths) -> State | None:
    """The instance's last state; None if it has never been started here.

    Raises:
        TsMpsError: It is of a version that is not known here: what runs cannot be told, and must not be taken for
            nothing.
    """
    value = read_json(paths.state)
    if value is None:
        return None
    try:
        if value["version"] != STATE_VERSION:
            raise ValueError(f"it is of version {value['version']}, and this ts-mps reads version {STATE_VERSION}")
        return _state(value)
    except (KeyError, TypeError, ValueError) as error:
        raise TsMpsError(
            f"The state {paths.state} of instance {paths.name} cannot be read: {error}.",
            "Stop the instance with the ts-mps that started it; if nothing of it runs any more, remove that file.",
        ) from error


def _state(value: dict[str, Any]) -> State:
    gpus = (GpuState(**{**known_fields(GpuState, gpu), "daemon": _process(gpu["daemon"])}) for gpu in value["gpus"])
    return State(
        **{
            **known_fields(State, value),
            "gpus": tuple(gpus),
            "guardian": _process(value["guardian"]),
            "java": _process(value["java"]),
            "endpoints": Endpoints.from_json(value["endpoints"]),
            "left": tuple(value.get("left", ())),
        }
    )


def _process(value: dict[str, int] | None) -> ProcessId | None:
    return ProcessId(**known_fields(ProcessId, value)) if value else None


def guardian_lives(paths: InstancePaths) -> bool:
    """Whether a guardian holds the instance."""
    return is_locked(paths.guardian_lock)
