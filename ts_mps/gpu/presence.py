"""Whether a GPU that was in use is still there, asked of NVML without making a CUDA context."""

from __future__ import annotations

from typing import Any


def why_lost(uuid: str) -> str:
    """Why a GPU cannot be used any more; empty if it can, or if NVML does not say.

    A GPU that fell off the bus (Xid 79) answers every call with NVML_ERROR_GPU_IS_LOST until the machine is restarted;
    other errors, such as a timeout under load, are no proof.
    """
    try:
        import pynvml
    except ImportError:
        return ""
    gone: dict[type[Any], str] = {
        pynvml.NVMLError_GpuIsLost: "it fell off the bus (Xid 79 in the kernel's log)",
        pynvml.NVMLError_NotFound: "the driver does not list it any more",
        pynvml.NVMLError_DriverNotLoaded: "the driver is not loaded",
        pynvml.NVMLError_LibraryNotFound: "the driver's library libnvidia-ml.so.1 is gone",
    }
    try:
        pynvml.nvmlInit()
        try:
            pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return gone.get(type(error), "")
    return ""
