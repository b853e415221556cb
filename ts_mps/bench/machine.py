"""What a study ran on: a figure without its machine says nothing."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from ts_mps import __version__
from ts_mps.bench.cores import Division
from ts_mps.errors import PreflightError
from ts_mps.gpu.inventory import Gpu
from ts_mps.torchserve.java import find_java

_PACKAGES = ("torch", "torchserve", "litserve", "locust", "numpy", "transformers")
#: Variables that every server of a study inherits and that change how fast it is; recorded where they are set.
_ENVIRONMENT = (
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY"),
    *("KMP_AFFINITY", "KMP_BLOCKTIME", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"),
    *("CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "NVIDIA_TF32_OVERRIDE"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "MALLOC_ARENA_MAX", "TOKENIZERS_PARALLELISM"),
)
#: What must be the same for the runs of two calls to stand in one study: the figures of another GPU, driver, division
#: of cores or version of this code may not be paired with these.
_SAME = ("host", "cpu", "cpu_quota", "division", "gpus", "driver", "cuda", "versions", "commit", "environment")


def read_machine(division: Division, gpus: Sequence[Gpu], environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Host, processor, cores and their division, memory, GPUs, versions, commit, environment; all ready for JSON.

    Args:
        division: Who runs on which cores.
        gpus: GPUs that the study uses.
        environ: What the servers inherit; Java is looked up there, too.
    """
    return {
        "host": socket.gethostname(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(division.server) + len(division.generator),
        "cpu_quota": _cpu_quota(),
        "division": {"server": list(division.server), "generator": list(division.generator)},
        "memory": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "system": platform.platform(),
        "container": _container(environ),
        "versions": {
            "ts_mps": __version__,
            "python": platform.python_version(),
            "java": _java(environ),
            **{name: _version(name) for name in _PACKAGES},
        },
        "commit": _commit(),
        "environment": [f"{name}={environ[name]}" for name in _ENVIRONMENT if name in environ],
        **_nvml(gpus),
    }


def different(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How a machine differs from the one that a study began on, as a sentence; empty if it is the same."""
    for name in _SAME:
        if before.get(name) != now.get(name):
            return f"{name} was {before.get(name)} and is {now.get(name)}"
    return ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _java(environ: Mapping[str, str]) -> int | None:
    try:
        return find_java(environ).version
    except PreflightError:
        return None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _cpu_quota() -> float | None:
    """Cores that cgroup v2 lets this container use on average (cpu.max); None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _container(environ: Mapping[str, str]) -> str:
    """What kind of container this is: "kubernetes", "docker", "podman", or "" for none that is known."""
    if "KUBERNETES_SERVICE_HOST" in environ:
        return "kubernetes"
    if Path("/.dockerenv").exists():
        return "docker"
    return "podman" if Path("/run/.containerenv").exists() else ""


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, with "-dirty" where files differ; None outside of one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _nvml(gpus: Sequence[Gpu]) -> dict[str, Any]:
    """Driver, CUDA and each GPU; None for what NVML does not say."""
    if not gpus:
        return {"driver": None, "cuda": None, "gpus": [], "others_on_gpus": 0}
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:
        raise PreflightError(f"NVML does not answer any more: {error}.") from error
    try:
        version = _asked(pynvml, lambda: int(pynvml.nvmlSystemGetCudaDriverVersion_v2()))
        driver = _asked(pynvml, pynvml.nvmlSystemGetDriverVersion)
        return {
            "driver": driver.decode() if isinstance(driver, bytes) else driver,
            "cuda": None if version is None else f"{version // 1000}.{version % 1000 // 10}",
            "gpus": [_gpu(pynvml, gpu) for gpu in gpus],
            "others_on_gpus": sum(_others(pynvml, gpu) for gpu in gpus),
        }
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, gpu: Gpu) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "memory": gpu.memory_total,
        "sms": gpu.sms or None,
        "sm_clock_max": _asked(nvml, lambda: int(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))),
        "power_limit": _asked(nvml, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        "compute_mode": gpu.compute_mode,
    }


def _others(nvml: Any, gpu: Gpu) -> int:
    """Processes that compute on a GPU before the study has started any."""
    handle = nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    return len(_asked(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or ())


def _asked(nvml: Any, ask: Any) -> Any:
    try:
        return ask()
    except (nvml.NVMLError, AttributeError):  # not every GPU, driver and version of the module says so
        return None
