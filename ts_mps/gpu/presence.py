"""Whether a GPU that was in use is still there, asked of NVML without making a CUDA context."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

#: Seconds for an answer; tens of milliseconds are usual.
WAIT_SECONDS = 2.0


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


class Presence:
    """Asks about GPUs in threads: a driver that is in trouble (Xid 79, 119) may not return from a call for minutes.

    Args:
        ask: Says why a GPU is lost.
        wait: Seconds for an answer.
    """

    def __init__(self, ask: Callable[[str], str] = why_lost, wait: float = WAIT_SECONDS) -> None:
        self._ask = ask
        self._wait = wait
        self._threads: dict[str, threading.Thread] = {}
        self._answers: dict[str, str] = {}

    def why_lost(self, uuid: str) -> str:
        """As :func:`why_lost`; where there is no answer in time, the last one.

        Silence is no proof: NVML may be waiting for another GPU. While a question has no answer no second one is asked,
        and nobody waits for it any more.
        """
        asked = self._threads.get(uuid)
        if asked is None or not asked.is_alive():
            asked = self._threads[uuid] = threading.Thread(target=self._learn, args=(uuid,), daemon=True)
            asked.start()
            asked.join(self._wait)
        return self._answers.get(uuid, "")

    def _learn(self, uuid: str) -> None:
        self._answers[uuid] = self._ask(uuid)
