"""What NVML says of the GPUs while a load runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from ts_mps.bench.records import GpuSample

_Value = TypeVar("_Value")
#: Why a GPU's clocks are held down, by NVML's bit (nvml.h, nvmlClocksEventReasons). Idleness and clocks that somebody
#: set are left out: they say nothing about a GPU that is driven too hard.
THROTTLING = {
    0x0000000000000004: "power cap",
    0x0000000000000008: "hardware slowdown",
    0x0000000000000010: "sync boost",
    0x0000000000000020: "temperature (software)",
    0x0000000000000040: "temperature (hardware)",
    0x0000000000000080: "power brake",
}


class GpuWatch:
    """Looks at GPUs through NVML while entered; sees nothing where there is no driver.

    Args:
        uuids: The GPUs.
    """

    def __init__(self, uuids: Sequence[str]) -> None:
        self._uuids = uuids
        self._handles: dict[str, Any] = {}
        self._nvml: Any = None

    def __enter__(self) -> GpuWatch:
        if not self._uuids:
            return self
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # no module or no driver: the inventory has said which
            return self
        self._nvml = pynvml
        for uuid in self._uuids:
            with suppress(pynvml.NVMLError):
                self._handles[uuid] = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return self

    def __exit__(self, *_: object) -> None:
        self._handles = {}
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def look(self) -> tuple[GpuSample, ...]:
        """One sample of each GPU, at instant 0; a figure that NVML does not give is None."""
        return tuple(self._sample(uuid, handle) for uuid, handle in self._handles.items())

    def _sample(self, uuid: str, handle: Any) -> GpuSample:
        nvml = self._nvml
        reasons = self._try(lambda: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)))
        return GpuSample(
            at=0.0,
            gpu=uuid,
            utilisation=self._try(lambda: int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
            memory=self._try(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used)),
            sm_clock=self._try(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
            temperature=self._try(lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            power=self._try(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            throttled=tuple(name for bit, name in THROTTLING.items() if (reasons or 0) & bit),
        )

    def _try(self, ask: Callable[[], _Value]) -> _Value | None:
        """An answer, or None where this GPU, driver or version of the module has none."""
        try:
            return ask()
        except (self._nvml.NVMLError, AttributeError):
            return None


def counted(samples: Sequence[tuple[float, tuple[GpuSample, ...]]], begin: float, end: float) -> tuple[GpuSample, ...]:
    """The samples that were taken between two instants, with their time since the first.

    Args:
        samples: (instant, one sample of each GPU), in order.
        begin: First instant, on the samples' clock.
        end: Last instant.
    """
    return tuple(
        replace(sample, at=round(instant - begin, 3))
        for instant, row in samples
        if begin <= instant <= end
        for sample in row
    )
