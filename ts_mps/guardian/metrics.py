"""TorchServe's ``system_metrics_cmd``: the instance's metrics beside the host's, the GPUs' and the workers' memory.

TorchServe runs ``python -m ts_mps.guardian.metrics --instance FOLDER --gpus UUID,UUID`` once per
``metric_time_interval`` seconds and publishes what it prints at :8082. It reads files and asks NVML; no daemon and no
CUDA, so it works, and says so, while the guardian does not.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

from ts_mps.files import is_locked, read_json, write_json
from ts_mps.gpu.readings import process_memory, sm_activity
from ts_mps.guardian import series
from ts_mps.guardian.reported import ended, from_json, growth
from ts_mps.guardian.watched import load_watched
from ts_mps.paths import InstancePaths
from ts_mps.plan.model import Plan
from ts_mps.processes import ProcessId
from ts_mps.torchserve.metrics import Sample, asked_pids, collect, worker_memory
from ts_mps.worker_records import WorkerRecord, workers

#: Seconds over which the SMs are watched at each collection.
ACTIVITY_SECONDS = 0.2
#: Names whose series end with their worker, and those that end with what the guardian looks at.
WORKER_NAMES = frozenset(
    f"ts_mps_worker_{name}"
    for name in (
        "info",
        "ready",
        "resident_memory_bytes",
        "gpu_memory_bytes",
        "gpu_memory_limit_bytes",
        "sm_share_ratio",
        "sms",
    )
)
LOOK_NAMES = frozenset(
    f"ts_mps_{name}"
    for name in (
        "gpu_usable",
        "daemon_state",
        "gpu_clients",
        "gpu_client_cap",
        "server_state",
        "workers_planned",
        "workers_ready",
        "workers_attached",
        "workers_held",
    )
)


def command(paths: InstancePaths, uuids: Sequence[str]) -> tuple[str, ...]:
    """The words of ``system_metrics_cmd`` for an instance on these GPUs; the frontend puts the interpreter before.

    The folder is quoted as in a URL: the frontend splits the command at blanks and knows no other quoting.
    """
    gpus = ("--gpus", ",".join(uuids)) if uuids else ()
    return ("-m", __name__, "--instance", quote(str(paths.root)), *gpus)


def samples(
    paths: InstancePaths,
    living: Sequence[WorkerRecord],
    *,
    java: str,
    resident: Mapping[int, int],
    on_gpu: Mapping[int, int],
    activity: Mapping[str, float],
    now: float,
) -> tuple[Sample, ...]:
    """The instance's metrics, as the frontend ``java`` must be told them; notes what it was told.

    While the guardian's look is stale, what only the guardian knows is not told at all: its series keep their last
    values, and ``ts_mps_look_fresh`` says 0.

    Args:
        paths: The instance.
        living: Its workers.
        java: The frontend, as "PID:START".
        resident: Pid -> bytes of host memory of the workers.
        on_gpu: Pid -> bytes of GPU memory, as far as they are known.
        activity: UUID -> share of the SMs that were busy.
        now: Seconds since the epoch.
    """
    plan = _plan(paths)
    watched = load_watched(paths)
    fresh = watched is not None and watched.fresh(time.monotonic())
    gauges = [*series.of_guardian(watched, lives=is_locked(paths.guardian_lock), fresh=fresh, now=now)]
    gauges += series.of_workers(living, plan, resident, on_gpu)
    gauges += series.of_gpus(plan, activity)
    counters: tuple[Sample, ...] = ()
    if watched is not None and fresh:
        gauges += series.of_look(watched)
        counters = series.totals(watched)
    told, reported = growth(from_json(read_json(paths.reported), java), java, counters)
    gone, reported = ended(reported, gauges, WORKER_NAMES | LOOK_NAMES if fresh else WORKER_NAMES)
    try:
        write_json(paths.reported, reported.as_json())
    except OSError as error:
        # What was told and not noted would be told again: a counter must rather stand still than count twice.
        print(f"ts-mps counters are left out: {paths.reported}: {error.strerror}", file=sys.stderr)
        told = ()
    return (*gauges, *gone, *told)


def _plan(paths: InstancePaths) -> Plan:
    with suppress(ValueError):
        return Plan.from_json(read_json(paths.plan) or {})
    return Plan((), ())


def main() -> None:
    """Run as the frontend runs it."""
    if sys.path and sys.path[0] == os.getcwd():
        # `-m` puts the working folder first, and the frontend's is that of all packages: it would beat PYTHONPATH.
        del sys.path[0]
    parser = argparse.ArgumentParser(description="Print TorchServe's system metrics and those of a ts-mps instance.")
    parser.add_argument("--instance", required=True, metavar="FOLDER", help="the instance's folder, URL-quoted")
    parser.add_argument("--gpus", default="", metavar="UUID,UUID", help="GPUs to report on")
    parsed = parser.parse_args()
    uuids = [uuid for uuid in parsed.gpus.split(",") if uuid]
    asked = asked_pids(sys.stdin.readline())
    paths = InstancePaths(Path(unquote(parsed.instance)))
    living = tuple(workers(paths))
    memory = worker_memory({*asked, *(worker.pid for worker in living)})
    java = ProcessId.of(os.getppid())
    found = samples(
        paths,
        living,
        java=f"{java.pid}:{java.started}" if java else "gone",
        resident=memory,
        on_gpu=process_memory(uuids) if uuids else {},
        activity=sm_activity(uuids, ACTIVITY_SECONDS) if uuids else {},
        now=time.time(),
    )
    collect(uuids, found, {pid: memory[pid] for pid in asked if pid in memory}, socket.gethostname(), sys.stdout)


if __name__ == "__main__":
    main()
