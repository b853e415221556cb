"""How many cores a server's frontend and its workers kept busy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import psutil


@dataclass(frozen=True)
class CpuSeconds:
    """CPU seconds, user and system, used since the processes began.

    Attributes:
        frontend: Of TorchServe's java, or of LitServe's HTTP servers and queue; without their children.
        workers: Of all workers, with their children.
    """

    frontend: float
    workers: float


def cpu_seconds(frontend: Iterable[int], workers: Iterable[int]) -> CpuSeconds:
    """What they have used until now; a process that is gone counts as nothing.

    Args:
        frontend: Pids of the frontend's processes.
        workers: Pids of the workers.
    """
    used = 0.0
    for process in _families(workers):
        with suppress(psutil.Error):
            times = process.cpu_times()
            # What children used that have ended stands in their parent's books only.
            used += times.user + times.system + times.children_user + times.children_system
    own = 0.0
    for pid in frontend:
        with suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            own += times.user + times.system
    return CpuSeconds(own, used)


def _families(pids: Iterable[int]) -> Iterator[psutil.Process]:
    """These processes and all below them.

    The list of processes is read once for all of them: read for each worker it would cost arms with many workers more
    than those with few, on the cores that are measured.
    """
    by_pid: dict[int, psutil.Process] = {}
    children: defaultdict[int, list[int]] = defaultdict(list)
    for process in psutil.process_iter(["ppid"]):
        by_pid[process.pid] = process
        children[process.info["ppid"]].append(process.pid)
    todo, seen = list(pids), set[int]()
    while todo:
        pid = todo.pop()
        if pid in by_pid and pid not in seen:
            seen.add(pid)
            todo += children[pid]
            yield by_pid[pid]


def busy_cores(samples: Sequence[tuple[float, CpuSeconds]], begin: float, end: float) -> tuple[float, float]:
    """Cores that frontend and workers kept busy between two instants, on average.

    Args:
        samples: (instant, CPU seconds until then), in order.
        begin: First instant, on the samples' clock.
        end: Last instant.

    Returns:
        Of the frontend, and of all workers together; 0 where there are not two samples. The seconds at the two instants
        are interpolated between the samples around them.
    """
    if len(samples) < 2 or end <= begin:
        return 0.0, 0.0
    first, last = _at(samples, begin), _at(samples, end)
    span = end - begin
    # A worker that died takes its seconds with it, which must not become negative work.
    return max(0.0, last.frontend - first.frontend) / span, max(0.0, last.workers - first.workers) / span


def _at(samples: Sequence[tuple[float, CpuSeconds]], instant: float) -> CpuSeconds:
    if instant <= samples[0][0]:
        return samples[0][1]
    for (before, low), (after, high) in pairwise(samples):
        if before <= instant <= after:
            part = (instant - before) / (after - before) if after > before else 0.0
            return CpuSeconds(
                low.frontend + part * (high.frontend - low.frontend), low.workers + part * (high.workers - low.workers)
            )
    return samples[-1][1]
