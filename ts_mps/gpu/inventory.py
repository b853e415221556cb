"""The GPUs of this machine, read once through NVML; no CUDA context is made."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: NVML_COMPUTEMODE_* (nvml.h) by number, in the words of ``nvidia-smi``.
COMPUTE_MODES = ("Default", "Exclusive_Thread", "Prohibited", "Exclusive_Process")
#: NVML fills an array of 64-bit words with core numbers; 64 words hold 4,096 cores.
_AFFINITY_WORDS = 64
#: Where the kernel tells the NUMA node of a PCI slot.
PCI_DEVICES = Path("/sys/bus/pci/devices")
#: FP32 cores per streaming multiprocessor by compute capability (CUDA C++ Programming Guide, "Compute Capabilities":
#: the number of 32-bit floating-point additions per clock cycle and SM). NVML counts cores and not SMs.
_CORES_PER_SM = {
    **dict.fromkeys([(3, 5), (3, 7)], 192),
    **dict.fromkeys([(5, 0), (5, 2), (5, 3), (6, 1), (6, 2)], 128),
    **dict.fromkeys([(6, 0), (7, 0), (7, 2), (7, 5), (8, 0)], 64),
    **dict.fromkeys([(8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)], 128),
}


@dataclass(frozen=True)
class MigInstance:
    """One MIG compute instance.

    Args:
        uuid: "MIG-" and 36 characters.
        profile: Its size as NVIDIA names it: "1g.18gb".
        memory_total: Bytes.
        memory_free: Bytes, at the time of reading.
        sms: Streaming multiprocessors; 0 if the driver does not say.
        slices: Compute slices, of 7 that a whole GPU has.
    """

    uuid: str
    profile: str
    memory_total: int
    memory_free: int
    sms: int
    slices: int


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
        sms: Streaming multiprocessors; 0 if they are not known.
        numa_node: The host's NUMA node that the GPU's PCI slot belongs to; None if the kernel does not know one.
        mig: Its MIG instances, in NVML's order; empty without MIG.
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
    sms: int = 0
    numa_node: int | None = None
    mig: tuple[MigInstance, ...] = ()


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


def free_memory(uuid: str) -> int | None:
    """Bytes that are free on a GPU now; None where NVML does not say."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no module, or no driver: read_inventory says which
        return None
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid)).free)
    except pynvml.NVMLError:
        return None
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
        sms=_sms(nvml, handle, (major, minor)),
        numa_node=_numa_node(nvml, handle),
        mig=_mig(nvml, handle) if mig_enabled else (),
    )


def _sms(nvml: Any, handle: Any, compute_capability: tuple[int, int]) -> int:
    per_sm = _CORES_PER_SM.get(compute_capability)
    if per_sm is None:
        return 0
    try:
        return int(nvml.nvmlDeviceGetNumGpuCores(handle)) // per_sm
    except nvml.NVMLError:  # drivers before 510
        return 0


def _numa_node(nvml: Any, handle: Any) -> int | None:
    """What the kernel says. NVML's own nvmlDeviceGetNumaNodeId is for GPUs whose memory is a NUMA node of its own."""
    try:
        bus = _text(nvml.nvmlDeviceGetPciInfo(handle).busId)
        # NVML writes the PCI domain with eight digits, the kernel with four.
        domain, _, rest = bus.partition(":")
        node = int((PCI_DEVICES / f"{int(domain, 16):04x}:{rest.lower()}" / "numa_node").read_text())
    except (nvml.NVMLError, OSError, ValueError):
        return None
    return node if node >= 0 else None  # -1 where there is only one


def _mig(nvml: Any, handle: Any) -> tuple[MigInstance, ...]:
    found = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(nvml.NVMLError_NotFound):  # a place without an instance
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            memory = nvml.nvmlDeviceGetMemoryInfo(instance)
            attributes = nvml.nvmlDeviceGetAttributes(instance)
            found.append(
                MigInstance(
                    uuid=_text(nvml.nvmlDeviceGetUUID(instance)),
                    profile=_text(nvml.nvmlDeviceGetName(instance)).rpartition("MIG ")[2],
                    memory_total=memory.total,
                    memory_free=memory.free,
                    sms=attributes.multiprocessorCount,
                    slices=attributes.computeInstanceSliceCount,
                )
            )
    return tuple(found)


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
