"""What a benchmark ran on: a figure without its machine says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "torchvision", "torchserve", "numpy", "pillow")
_REPOSITORY = Path(__file__).resolve().parents[1]


def machine() -> dict[str, Any]:
    """Processor, Python, packages, this repository's commit, and what NVML says of the GPUs; all ready for JSON."""
    return {
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **_gpus(),
    }


def usable_cores() -> int:
    """Cores that this process may use, which a container has fewer of than its machine."""
    return len(os.sched_getaffinity(0))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str | None:
    """The commit, with "-dirty" where files differ from it; None outside of a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=_REPOSITORY, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _gpus() -> dict[str, Any]:
    """Names, driver, power limits in watts, and the processes that were on the GPUs before anything was started."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            return {
                "gpus": [pynvml.nvmlDeviceGetName(one) for one in handles],
                "driver": pynvml.nvmlSystemGetDriverVersion(),
                "driver_cuda": pynvml.nvmlSystemGetCudaDriverVersion_v2(),
                "power_limits_w": [_power_limit(one) for one in handles],
                "others_on_gpus": sum(len(pynvml.nvmlDeviceGetComputeRunningProcesses(one)) for one in handles),
            }
        finally:
            pynvml.nvmlShutdown()
    except Exception as error:
        return {"gpus": f"none: {error}"}


def _power_limit(handle: Any) -> float | None:
    import pynvml

    try:
        return float(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1e3
    except pynvml.NVMLError:  # not every GPU says so
        return None
