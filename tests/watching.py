"""Files of an instance as its guardian and its workers leave them, made by hand."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from ts_mps.files import write_json
from ts_mps.guardian.state import GpuState, State
from ts_mps.guardian.watched import Watched, WatchedGpu, WatchedModel
from ts_mps.paths import InstancePaths
from ts_mps.plan.model import Plan, PlannedGpu, Slot
from ts_mps.processes import myself
from ts_mps.torchserve.addresses import Address
from ts_mps.torchserve.endpoints import Endpoints

UUID = "GPU-00000000-0000-4000-8000-000000000000"
PLAN = Plan(
    gpus=(PlannedGpu(0, UUID, "NVIDIA H200", 48, "/pipe"),),
    slots=(Slot(0, "bert", "1.0", UUID), Slot(1, "bert", "1.0", UUID), Slot(2, "tiny", "1.0", None)),
)


def watched(**changed: object) -> Watched:
    """A look at an instance where all is well, of this moment."""
    fine = Watched(
        java=True,
        java_restarts=0,
        gpus=(WatchedGpu(UUID, 0, "running", "ACTIVE", 2, 48),),
        models=(WatchedModel("bert", 2, 2, 2), WatchedModel("tiny", 1, 1, 1)),
        took=0.02,
    )
    return replace(fine, **changed)


def bert(**changed: object) -> tuple[WatchedModel, ...]:
    """The models of :func:`watched` with another state of the first."""
    return replace(WatchedModel("bert", 2, 2, 2), **changed), WatchedModel("tiny", 1, 1, 1)


def state(folder: Path, **changed: object) -> State:
    """A state that says that this process is guardian and java of an instance that has served for an hour."""
    local = Address("inference_address", "127.0.0.1", 8080)
    serving = State(
        instance="default",
        phase="serving",
        mps="on",
        mps_why="MPS is on.",
        guardian=myself(),
        gpus=(GpuState(0, UUID, "NVIDIA H200", 48, "/pipe"),),
        endpoints=Endpoints(local, local, local, None, None),
        folder=str(folder),
        config="config.properties",
        config_source="a test",
        pid_file="pid",
        drain_timeout=1.0,
        worker_port=9000,
        java=myself(),
        since=time.time() - 3600,
        clock=time.monotonic() - 3600,
    )
    return replace(serving, **changed)


def instance(folder: Path, plan: Plan = PLAN) -> InstancePaths:
    """An instance's folder with a plan and nothing else."""
    paths = InstancePaths(folder / "instances" / "default")
    paths.slots.mkdir(parents=True)
    folder.chmod(0o700)
    write_json(paths.plan, plan.as_json())
    return paths
