"""What several tests need: simulated GPUs, the MPS processes of a folder, waiting for something to come true."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil

SIMULATOR = Path(__file__).parent / "simulator"
CONTROL = "nvidia-cuda-mps-control"


def simulated_gpu(index: int = 0, **more: object) -> dict[str, object]:
    """One entry of SIM_GPUS: an H200."""
    return {
        "uuid": f"GPU-{index:08x}-0000-4000-8000-00000000000{index}",
        "name": "NVIDIA H200",
        "compute_capability": [9, 0],
        "memory_total": 150754820096,
        "memory_free": 150122594304,
        "cores": sorted(os.sched_getaffinity(0)),
        **more,
    }


@functools.cache
def why_no_gpu() -> str:
    """Why tests marked `gpu` cannot run here; empty if they can."""
    import pynvml

    if shutil.which(CONTROL) is None:
        return f"{CONTROL} is not on PATH"
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return f"NVML: {error}"
    return "" if count else "NVML sees no GPU"


def mps_processes(folder: Path) -> list[psutil.Process]:
    """Living control daemons and servers whose pipe folder is under ``folder``."""
    found = []
    for process in psutil.process_iter():
        try:
            pipe = process.environ().get("CUDA_MPS_PIPE_DIRECTORY", "")
            named = (process.cmdline() or [""])[0].rpartition("/")[2]
        except psutil.Error:
            continue
        if pipe.startswith(str(folder)) and named in (CONTROL, "nvidia-cuda-mps-server"):
            found.append(process)
    return found


def gone(pid: int) -> bool:
    """Whether no living process has this pid; a zombie is dead."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def hear_signals() -> None:
    """Before a child's exec: what nohup and a shell's & set would be inherited, and the child ignore these signals."""
    for signum in (signal.SIGHUP, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)


def pack(archive: Path, content: str) -> None:
    """An archive that differs from others by its one file only."""
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("handler.py", content)
