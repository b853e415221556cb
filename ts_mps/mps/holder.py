"""A process that opens one CUDA context and holds it: the smallest MPS client. Run as a script, once for each client.

It knows nothing but libcuda, because importing torch takes seconds and 48 of these are started. It writes one line,
``{"step": ..., "error": 0, "name": ""}``, and keeps the context until its standard input ends, which the death of
whoever started it does too.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

#: CUDA driver API, cuda.h.
CUDA_SUCCESS = 0


def open_context(cuda: Any) -> tuple[str, int]:
    """Open the primary context of the first visible GPU, as CUDA's runtime and torch do.

    Args:
        cuda: libcuda, or something with its functions.

    Returns:
        The last call, and its CUresult.
    """
    device, context = ctypes.c_int(), ctypes.c_void_p()
    error = cuda.cuInit(0)
    if error != CUDA_SUCCESS:
        return "cuInit", error
    error = cuda.cuDeviceGet(ctypes.byref(device), 0)
    if error != CUDA_SUCCESS:
        return "cuDeviceGet", error
    return "cuDevicePrimaryCtxRetain", cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


def error_name(cuda: Any, error: int) -> str:
    """CUDA_ERROR_... by its number; empty if the driver does not know it."""
    name = ctypes.c_char_p()
    cuda.cuGetErrorName(error, ctypes.byref(name))
    return (name.value or b"").decode()


def hold(cuda: Any) -> None:
    """Open the context, say how that went, and keep it until standard input ends."""
    step, error = open_context(cuda)
    name = error_name(cuda, error) if error != CUDA_SUCCESS else ""
    sys.stdout.write(json.dumps({"step": step, "error": error, "name": name}) + "\n")
    sys.stdout.flush()
    if error == CUDA_SUCCESS:
        sys.stdin.read()


if __name__ == "__main__":
    hold(ctypes.CDLL("libcuda.so.1"))
