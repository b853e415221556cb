"""EXCLUSIVE_PROCESS compute mode, and the old mode put back on every way out.

Both functions expect the caller to hold ``GpuPaths.lock``: two instances that share a GPU must not take each other's
change for the user's own setting.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ts_mps.errors import MpsError
from ts_mps.files import read_json, write_json
from ts_mps.gpu.inventory import Gpu
from ts_mps.paths import GpuPaths


def set_exclusive(gpu: Gpu, paths: GpuPaths) -> None:
    """Let only the MPS server use the GPU, so that a process which misses MPS fails instead of taking turns.

    The old mode is on disk before the change, so that even after a kill -9 the next start or stop finds it.

    Raises:
        MpsError: Not permitted (the compute mode needs root), or NVML fails.
    """
    what = f"GPU {gpu.index} ({gpu.uuid}) could not be set to compute mode EXCLUSIVE_PROCESS"
    with _device(gpu.uuid, what, "Run ts-mps as root, or start without --exclusive.") as (nvml, handle):
        current = nvml.nvmlDeviceGetComputeMode(handle)
        if current == nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS:
            return
        write_json(paths.compute_mode, {"compute_mode": current})
        try:
            nvml.nvmlDeviceSetComputeMode(handle, nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS)
        except nvml.NVMLError:
            paths.compute_mode.unlink()
            raise


def restore(uuid: str, paths: GpuPaths) -> None:
    """Put back the compute mode that :func:`set_exclusive` found; does nothing where it changed none.

    A mode that somebody else has set since is left alone.

    Raises:
        MpsError: Not permitted, or NVML fails. The file stays, so that a later call can try again.
    """
    if not paths.compute_mode.exists():
        return
    # Written in one step, so anything unreadable was not written by us: the driver's own default is 0.
    old = (read_json(paths.compute_mode) or {}).get("compute_mode", 0)
    what = f"The compute mode of {uuid} could not be put back"
    with _device(uuid, what, f"Run as root: nvidia-smi -i {uuid} -c {old}") as (nvml, handle):
        if nvml.nvmlDeviceGetComputeMode(handle) == nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS:
            nvml.nvmlDeviceSetComputeMode(handle, old)
    paths.compute_mode.unlink()


@contextmanager
def _device(uuid: str, what: str, remedy: str) -> Iterator[tuple[Any, Any]]:
    """NVML and the GPU's handle; NVML's errors become sentences."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            yield pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError_NoPermission as error:
        raise MpsError(f"{what}: it needs root.", remedy) from error
    except pynvml.NVMLError as error:
        raise MpsError(f"{what}: {error}.", remedy) from error
