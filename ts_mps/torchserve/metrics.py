"""What TorchServe's frontend reads from its ``system_metrics_cmd``: host, GPU and worker metrics.

The frontend runs the command once per ``metric_time_interval`` seconds, writes the worker pids to its stdin and reads
its stdout (MetricCollector of TorchServe 0.12.0): metric lines, an empty line, then ``PID:BYTES`` per worker.
TorchServe's own script needs packages for GPUs that TorchServe does not declare, and asks for all GPUs; this one asks
NVML for those in use, without CUDA. The command itself is :mod:`ts_mps.guardian.metrics`.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

_MIB = 1024 * 1024
#: What would end a value or a label of the line early (class Metric of the frontend), and what is no text at all.
_SPECIAL = re.compile(r"[|,:\s\x00-\x1f]+")


@dataclass(frozen=True)
class Sample:
    """One value of one series.

    Attributes:
        name: Name as declared in metrics.yaml; the frontend drops any other.
        value: For a gauge the value, for a counter what it has grown by.
        unit: Word of metrics.yaml; it becomes a part of the help text.
        labels: Names and values. The frontend fills the declared dimensions by position, and the host name last.
    """

    name: str
    value: float
    unit: str
    labels: tuple[tuple[str, str], ...] = ()

    def line(self, host: str, at: int) -> str:
        """The line as the frontend's pattern takes it.

        Args:
            host: The host's name.
            at: Seconds since the epoch.
        """
        # The pattern knows neither "nan" nor the plus sign of an exponent, so numbers are written out.
        number = f"{self.value:.6f}".rstrip("0").rstrip(".")
        # An empty label would be dropped and shift those behind it.
        labels = ",".join(f"{name}:{_SPECIAL.sub('_', value) or 'none'}" for name, value in self.labels)
        return f"{self.name}.{self.unit}:{number}|#{labels}|#hostname:{host},{at}"


def gpu_metrics(uuids: Sequence[str]) -> Iterator[tuple[str, float, str, int]]:
    """Name, value, unit and NVML index of each GPU metric: the names and units of TorchServe's metrics.yaml.

    A GPU that does not answer, or a value that it does not know, is left out with a line on stderr, which the
    frontend puts into its log.
    """
    import pynvml

    def complain(uuid: str, error: Exception) -> None:
        print(f"No metrics of GPU {uuid}: NVML says {error}", file=sys.stderr)

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        complain(", ".join(uuids), error)
        return
    try:
        for uuid in uuids:
            try:
                device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                index = pynvml.nvmlDeviceGetIndex(device)
                # The second version leaves out what the driver reserves, as nvidia-smi does.
                memory = pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2)
                yield "GPUMemoryUtilization", 100 * memory.used / memory.total, "percent", index
                yield "GPUMemoryUsed", memory.used / _MIB, "MB", index
                yield "GPUUtilization", pynvml.nvmlDeviceGetUtilizationRates(device).gpu, "percent", index
            except pynvml.NVMLError as error:
                complain(uuid, error)
    finally:
        pynvml.nvmlShutdown()


def worker_memory(pids: Iterable[int]) -> dict[int, int]:
    """Resident set, in bytes, of each of these processes that still lives."""
    import psutil

    found = {}
    for pid in pids:
        try:
            found[pid] = int(psutil.Process(pid).memory_info().rss)
        except (ValueError, psutil.Error):
            continue
    return found


def asked_pids(line: str) -> tuple[int, ...]:
    """The worker pids of the frontend's comma list; words that are none are left out."""
    return tuple(int(word) for word in line.strip().split(",") if word.isascii() and word.isdigit())


def collect(
    uuids: Sequence[str], samples: Iterable[Sample], memory: Mapping[int, int], host: str, stdout: IO[str]
) -> None:
    """Write everything that the frontend expects.

    Args:
        uuids: GPUs to report on; none does without NVML.
        samples: Our own metrics.
        memory: Pid -> bytes of the workers that the frontend asked for. A line about any other process would end the
            frontend's metrics for good.
        host: The host's name, as TorchServe's own metrics have it.
        stdout: What the frontend reads.
    """
    from ts.metrics import system_metrics
    from ts.metrics.dimension import Dimension
    from ts.metrics.metric import Metric

    logging.basicConfig(stream=stdout, format="%(message)s", level=logging.INFO, force=True)
    theirs: Any = system_metrics
    at = int(time.time())
    for sample in samples:
        print(sample.line(host, at), file=stdout)
    for name, value, unit, index in gpu_metrics(uuids) if uuids else ():
        dimensions = [Dimension("Level", "Host"), Dimension("DeviceId", index)]
        theirs.system_metrics.append(Metric(name, value, unit, dimensions))
    # Adds the host's metrics, writes all, and the empty line; 0 GPUs, because those are there already.
    theirs.collect_all(theirs, 0)
    for pid, size in memory.items():
        print(f"{pid}:{size}", file=stdout)
