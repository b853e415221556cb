"""The GPUs of this machine, read once through NVML; no CUDA context is made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

#: NVML_COMPUTEMODE_* (nvml.h) by number, in the words of ``nvidia-smi``.
COMPUTE_MODES = ("Default", "Exclusive_Thread", "Prohibited", "Exclusive_Process")
#: NVML fills an array of 64-bit words with core numbers; 64 words hold 4,096 cores.
_AFFINITY_WORDS = 64


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML describes it.

    Args:
        index: NVML's index, which is ``nvidia-smi``'s (PCI bus order).
        uuid: "GPU-" and 36 characters.
        name: The product's name.
        compute_capability: (major, minor).
        memory_total: Bytes.
        memory_free: Bytes, at the time of reading.
        compute_mode: One of :data:`COMPUTE_MODES`.
        mig_enabled: Whether the GPU is split by MIG now.
        cores: Host cores near the GPU that this process may use, ascending; empty if NVML does not know.
    """

    index: int
    uuid: str
    name: str
    compute_capability: tuple[int, int]
    memory_total: int
    memory_free: int
    compute_mode: str
    mig_enabled: bool
    cores: tuple[int, ...]


@dataclass(frozen=True)
class Inventory:
    """What NVML sees.

    Args:
        gpus: Every GPU that could be read, by index.
        driver_version: "580.159.04"; empty where there is no driver.
        problem: A sentence that says why there are no GPUs, or which one could not be read; empty if all is well.
    """

    gpus: tuple[Gpu, ...]
    driver_version: str
    problem: str


def read_inventory() -> Inventory:
    """Ask NVML for every GPU. Never raises: a machine without GPUs is a finding, not an error."""
    try:
        import pynvml
    except ImportError as error:
        return Inventory((), "", f"NVML cannot be used: {error}.")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return Inventory((), "", "This machine has no NVIDIA driver: libnvidia-ml.so.1 was not found.")
    except pynvml.NVMLError as error:
        return Inventory((), "", f"The NVIDIA driver does not answer: {error}.")
    try:
        return _read(pynvml)
    except pynvml.NVMLError as error:
        return Inventory((), "", f"NVML cannot list the GPUs: {error}.")
    finally:
        pynvml.nvmlShutdown()


def _read(nvml: Any) -> Inventory:
    gpus: list[Gpu] = []
    problems: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        gpu = _gpu_or_problem(nvml, index)
        if isinstance(gpu, Gpu):
            gpus.append(gpu)
        else:
            problems.append(gpu)
    if not gpus and not problems:
        problems.append("The NVIDIA driver is loaded but sees no GPU.")
    return Inventory(tuple(gpus), _text(nvml.nvmlSystemGetDriverVersion()), " ".join(problems))


def _gpu_or_problem(nvml: Any, index: int) -> Gpu | str:
    try:
        return _read_gpu(nvml, index)
    except nvml.NVMLError as error:  # one GPU that fell off the bus must not hide the healthy ones
        return f"GPU {index} cannot be read: {error}."


def _read_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    try:
        mig_enabled = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError_NotSupported:  # GPUs that have no MIG
        mig_enabled = False
    return Gpu(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        compute_capability=(major, minor),
        memory_total=memory.total,
        memory_free=memory.free,
        compute_mode=COMPUTE_MODES[nvml.nvmlDeviceGetComputeMode(handle)],
        mig_enabled=mig_enabled,
        cores=_cores(nvml, handle),
    )


def _cores(nvml: Any, handle: Any) -> tuple[int, ...]:
    try:
        words = nvml.nvmlDeviceGetCpuAffinity(handle, _AFFINITY_WORDS)
    except nvml.NVMLError:  # not supported in some virtual machines
        return ()
    near = {64 * place + bit for place, word in enumerate(words) for bit in range(64) if word >> bit & 1}
    return tuple(sorted(near & os.sched_getaffinity(0)))


def _text(value: str | bytes) -> str:
    """Older releases of nvidia-ml-py return bytes."""
    return value.decode() if isinstance(value, bytes) else value
