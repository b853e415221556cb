"""What NVML says beyond utilisation: how much of a GPU's SMs work, and what each process holds. No CUDA is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def sm_activity(
    uuids: Sequence[str], seconds: float, sleep: Callable[[float], None] = time.sleep
) -> Mapping[str, float]:
    """Share of the streaming multiprocessors that were busy during ``seconds`` from now, 0 to 1.

    Under MPS this is what utilisation is not: the latter says only that some kernel ran. Source: NVML's GPU
    performance monitoring, NVML_GPM_METRIC_SM_UTIL (nvml.h), from Hopper on.

    Args:
        uuids: The GPUs.
        seconds: How long to watch; NVML asks for 0.1 at least.
        sleep: Waits.

    Returns:
        UUID -> share; GPUs, drivers and versions of the module that do not give it are left out.
    """
    with _Nvml() as nvml:
        if nvml is None or not hasattr(nvml, "nvmlGpmSampleGet"):
            return {}
        begun = {uuid: sample for uuid in uuids if (sample := _try(nvml, _sample, nvml, uuid)) is not None}
        if begun:
            sleep(seconds)
        found = {uuid: _try(nvml, _busy, nvml, uuid, sample) for uuid, sample in begun.items()}
        for sample in begun.values():
            nvml.nvmlGpmSampleFree(sample)
    return {uuid: share for uuid, share in found.items() if share is not None}


def process_memory(uuids: Sequence[str]) -> Mapping[int, int]:
    """Bytes of GPU memory that each process holds, as far as NVML says so.

    It does not of MPS clients (seen on driver 580), nor where its pids are of another namespace than ours: a container
    without the host's.
    """
    found: dict[int, int] = {}
    with _Nvml() as nvml:
        for uuid in uuids if nvml is not None else ():
            for row in _try(nvml, _processes, nvml, uuid) or ():
                if (used := getattr(row, "usedGpuMemory", None)) is not None:
                    found[row.pid] = found.get(row.pid, 0) + int(used)
    return found


class _Nvml:
    """The module, initialised while entered; None without module or driver."""

    def __enter__(self) -> Any:
        self._nvml: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # whichever it is, the inventory has said so at the start
            return None
        self._nvml = pynvml
        return pynvml

    def __exit__(self, *_: object) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()


def _try(nvml: Any, ask: Callable[..., Any], *arguments: Any) -> Any:
    """An answer, or None where this GPU, driver or version of the module has none."""
    try:
        return ask(*arguments)
    except (nvml.NVMLError, AttributeError):
        return None


def _processes(nvml: Any, uuid: str) -> Any:
    return nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByUUID(uuid))


def _sample(nvml: Any, uuid: str) -> Any:
    device = nvml.nvmlDeviceGetHandleByUUID(uuid)
    if not nvml.nvmlGpmQueryDeviceSupport(device).isSupportedDevice:
        return None
    sample = nvml.nvmlGpmSampleAlloc()
    try:
        nvml.nvmlGpmSampleGet(device, sample)
    except nvml.NVMLError:
        nvml.nvmlGpmSampleFree(sample)
        raise
    return sample


def _busy(nvml: Any, uuid: str, begun: Any) -> float | None:
    ended = _sample(nvml, uuid)
    if ended is None:
        return None
    try:
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics = 1
        asked.sample1, asked.sample2 = begun, ended
        asked.metrics[0].metricId = nvml.NVML_GPM_METRIC_SM_UTIL
        answer = nvml.nvmlGpmMetricsGet(asked).metrics[0]
        share = float(answer.value) / 100
        # A sample of no length divides by zero, which NVML hands on.
        return share if answer.nvmlReturn == 0 and 0 <= share <= 1 else None
    finally:
        nvml.nvmlGpmSampleFree(ended)
