"""TorchServe's ``system_metrics_cmd``: host, GPU and worker metrics, once per ``metric_time_interval`` seconds.

The frontend runs this file as a script, writes the worker pids to its stdin and reads its stdout (MetricCollector of
TorchServe 0.12.0): metric lines, an empty line, then ``PID:BYTES`` per worker. TorchServe's own script needs packages
for GPUs that TorchServe does not declare, and asks for all GPUs; this one asks NVML for those in use, without CUDA.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

_MIB = 1024 * 1024


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


def worker_memory(pids: str) -> Iterator[str]:
    """``PID:BYTES`` (resident set) of each worker of a comma list that still lives.

    A line about any other process, or one that is no number, would end the frontend's metrics for good.
    """
    import psutil

    for word in pids.split(","):
        try:
            yield f"{int(word)}:{psutil.Process(int(word)).memory_info().rss}"
        except (ValueError, psutil.Error):
            continue


def collect(uuids: Sequence[str], stdin: IO[str], stdout: IO[str]) -> None:
    """Write everything that the frontend expects.

    Args:
        uuids: GPUs to report on; none does without NVML.
        stdin: Its first line is the comma list of worker pids.
        stdout: What the frontend reads.
    """
    from ts.metrics import system_metrics
    from ts.metrics.dimension import Dimension
    from ts.metrics.metric import Metric

    logging.basicConfig(stream=stdout, format="%(message)s", level=logging.INFO, force=True)
    host: Any = system_metrics
    for name, value, unit, index in gpu_metrics(uuids) if uuids else ():
        dimensions = [Dimension("Level", "Host"), Dimension("DeviceId", index)]
        host.system_metrics.append(Metric(name, value, unit, dimensions))
    # Adds the host's metrics, writes all, and the empty line; 0 GPUs, because those are there already.
    host.collect_all(host, 0)
    for line in worker_memory(stdin.readline().strip()):
        print(line, file=stdout)


def main() -> None:
    """Run as the frontend runs it: ``metrics.py [--gpus UUID,UUID]``."""
    if sys.path and sys.path[0] == str(Path(__file__).parent):
        # Python puts a script's folder first, where modules of ours would pass for others called config or models.
        del sys.path[0]
    parser = argparse.ArgumentParser(description="Print TorchServe's system metrics.")
    parser.add_argument("--gpus", default="", metavar="UUID,UUID", help="GPUs to report on")
    uuids = parser.parse_args().gpus
    collect([uuid for uuid in uuids.split(",") if uuid], sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()
