"""Memory of one GPU as NVML sees it, all processes together: what a worker costs is what the figure grows by.

torch's own counters leave out the context, cuBLAS and captured graphs, and NVML gives no figures per process for MPS
clients, so the device's total is the only one that holds everything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import pynvml

_MPS_SERVER = "nvidia-cuda-mps-server"
#: NVML takes some 20 microseconds for a look; a batch's peak lasts longer than this, as torch keeps its blocks.
_LOOK_SECONDS = 0.005
#: How long the figure must stand still, and how long that is waited for: an exit shows a little later.
_STILL_SECONDS = 0.3
_SETTLE_SECONDS = 10.0


class GpuMemory:
    """Reads one GPU while the context manager is open.

    Args:
        uuid: NVML's UUID.
    """

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid

    def __enter__(self) -> GpuMemory:
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pynvml.nvmlShutdown()

    def used(self) -> int:
        """Bytes that processes hold now; what the driver keeps for itself is not in it (NVML's second version)."""
        try:
            used = pynvml.nvmlDeviceGetMemoryInfo(self._handle, version=pynvml.nvmlMemory_v2).used
        except pynvml.NVMLError:
            used = pynvml.nvmlDeviceGetMemoryInfo(self._handle).used
        return int(used)

    def total(self) -> int:
        """Bytes of the GPU."""
        return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).total)

    def settled(self) -> int:
        """:meth:`used` once it stands still."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        last, since = self.used(), time.monotonic()
        while time.monotonic() - since < _STILL_SECONDS and time.monotonic() < deadline:
            time.sleep(0.02)
            now = self.used()
            if now != last:
                last, since = now, time.monotonic()
        return last

    @contextmanager
    def peak(self) -> Iterator[Peak]:
        """Watch the memory while the block runs."""
        peak = Peak(self.used())
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_LOOK_SECONDS):
                peak.bytes = max(peak.bytes, self.used())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield peak
        finally:
            done.set()
            thread.join()
            peak.bytes = max(peak.bytes, self.used())

    def strangers(self) -> tuple[int, ...]:
        """Process ids on this GPU, MPS servers left out; empty in a container that does not see them."""
        pids = set()
        for look in (
            pynvml.nvmlDeviceGetComputeRunningProcesses,
            pynvml.nvmlDeviceGetMPSComputeRunningProcesses,
        ):
            try:
                pids |= {int(process.pid) for process in look(self._handle)}
            except pynvml.NVMLError:  # not supported in some virtual machines
                continue
        return tuple(sorted(pid for pid in pids if _MPS_SERVER not in _name(pid)))


class Peak:
    """The most memory so far, in bytes."""

    def __init__(self, used: int) -> None:
        self.bytes = used


def _name(pid: int) -> str:
    try:
        name = pynvml.nvmlSystemGetProcessName(pid)
    except pynvml.NVMLError:
        return ""
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
