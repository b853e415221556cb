"""A stand-in for NVML's Python module, for tests on machines without a GPU.

SIM_GPUS is a JSON list, one object per GPU: uuid, name, compute_capability, memory_total, memory_free, cores, and
optionally mig (true), no_mig (not supported), lost (every call fails), gpu_cores (CUDA cores), bus (PCI address),
mig_instances (a list of objects: uuid, name, memory_total, memory_free, sms, slices; null for an empty place).
SIM_NVML_LOST is a file with the UUIDs of GPUs that are lost by now. SIM_NVML_MODES is a file that keeps the compute
modes between processes; SIM_NVML_NO_PERMISSION=1 refuses to set one.
Without SIM_GPUS there is no driver.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

NVML_COMPUTEMODE_DEFAULT = 0
NVML_COMPUTEMODE_EXCLUSIVE_PROCESS = 3
NVML_DEVICE_MIG_ENABLE = 1
nvmlMemory_v2 = 0x02000028


class NVMLError(Exception):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    def __str__(self):
        return "NVML Shared Library Not Found"


class NVMLError_DriverNotLoaded(NVMLError):
    def __str__(self):
        return "Driver Not Loaded"


class NVMLError_NoPermission(NVMLError):
    def __str__(self):
        return "Insufficient Permissions"


class NVMLError_NotSupported(NVMLError):
    def __str__(self):
        return "Not Supported"


class NVMLError_NotFound(NVMLError):
    def __str__(self):
        return "Not Found"


class NVMLError_GpuIsLost(NVMLError):
    def __str__(self):
        return "GPU is lost"


def _gpus():
    return json.loads(os.environ["SIM_GPUS"])


def _modes():
    path = Path(os.environ.get("SIM_NVML_MODES", os.devnull))
    return json.loads(path.read_text() or "{}") if path.exists() else {}


def _lost(gpu):
    path = Path(os.environ.get("SIM_NVML_LOST", os.devnull))
    return gpu.get("lost") or (path.exists() and gpu["uuid"] in path.read_text())


def nvmlInit():
    if "SIM_GPUS" not in os.environ:
        raise NVMLError_LibraryNotFound
    if os.environ["SIM_GPUS"] == "driver not loaded":
        raise NVMLError_DriverNotLoaded


def nvmlShutdown():
    pass


def nvmlSystemGetDriverVersion():
    return "580.159.04"


def nvmlDeviceGetCount():
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index):
    gpu = _gpus()[index]
    if _lost(gpu):
        raise NVMLError_GpuIsLost
    return gpu


def nvmlDeviceGetHandleByUUID(uuid):
    for gpu in _gpus():
        if gpu["uuid"] == uuid:
            if _lost(gpu):
                raise NVMLError_GpuIsLost
            return gpu
    raise NVMLError_NotFound


def nvmlDeviceGetUUID(gpu):
    return gpu["uuid"]


def nvmlDeviceGetName(gpu):
    return gpu["name"]


def nvmlDeviceGetCudaComputeCapability(gpu):
    return tuple(gpu["compute_capability"])


def nvmlDeviceGetIndex(gpu):
    return [other["uuid"] for other in _gpus()].index(gpu["uuid"])


def nvmlDeviceGetMemoryInfo(gpu, version=None):
    total, free = gpu["memory_total"], gpu["memory_free"]
    return SimpleNamespace(total=total, free=free, used=total - free)


def nvmlDeviceGetUtilizationRates(gpu):
    return SimpleNamespace(gpu=gpu.get("utilization", 0), memory=0)


def nvmlDeviceGetMigMode(gpu):
    if gpu.get("no_mig"):
        raise NVMLError_NotSupported
    return [int(bool(gpu.get("mig"))), 0]


def nvmlDeviceGetMaxMigDeviceCount(gpu):
    return len(gpu.get("mig_instances", []))


def nvmlDeviceGetMigDeviceHandleByIndex(gpu, index):
    if gpu["mig_instances"][index] is None:
        raise NVMLError_NotFound
    return gpu["mig_instances"][index]


def nvmlDeviceGetAttributes(instance):
    return SimpleNamespace(multiprocessorCount=instance["sms"], computeInstanceSliceCount=instance["slices"])


def nvmlDeviceGetNumGpuCores(gpu):
    if "gpu_cores" not in gpu:
        raise NVMLError_NotSupported
    return gpu["gpu_cores"]


def nvmlDeviceGetPciInfo(gpu):
    if "bus" not in gpu:
        raise NVMLError_NotSupported
    return SimpleNamespace(busId=gpu["bus"])


def nvmlDeviceGetComputeMode(gpu):
    return _modes().get(gpu["uuid"], gpu.get("compute_mode", NVML_COMPUTEMODE_DEFAULT))


def nvmlDeviceSetComputeMode(gpu, mode):
    if os.environ.get("SIM_NVML_NO_PERMISSION"):
        raise NVMLError_NoPermission
    Path(os.environ["SIM_NVML_MODES"]).write_text(json.dumps({**_modes(), gpu["uuid"]: mode}))


def nvmlDeviceGetCpuAffinity(gpu, words):
    if "cores" not in gpu:
        raise NVMLError_NotSupported
    mask = sum(1 << core for core in gpu["cores"])
    return [mask >> 64 * word & (1 << 64) - 1 for word in range(words)]


def nvmlDeviceGetComputeRunningProcesses(gpu):
    return [SimpleNamespace(pid=pid) for pid in gpu.get("processes", {}).values()]


def nvmlDeviceGetMPSComputeRunningProcesses(gpu):
    raise NVMLError_NotSupported


def nvmlSystemGetProcessName(pid):
    for gpu in _gpus():
        for name, other in gpu.get("processes", {}).items():
            if other == pid:
                return name
    raise NVMLError_NotFound
