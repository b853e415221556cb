"""Checks of the machine: GPUs, MPS, limits of the operating system, Python."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from ts_mps.doctor.findings import Findings
from ts_mps.errors import TsMpsError
from ts_mps.gpu.caps import client_cap, max_connections
from ts_mps.gpu.inventory import Gpu, Inventory, read_inventory
from ts_mps.guardian.choice import MpsChoice, choose_mps, visible_gpus
from ts_mps.mps.control import Control, find_binary
from ts_mps.torchserve.java import find_java
from ts_mps.torchserve.server_config import ServerConfig

#: NVIDIA's MPS guide advises so many file descriptors ("ulimit -n"); with fewer a server may fail to make its segments.
FILES_ADVISED = 16384
#: Pinned host memory of MPS clients is limited by /dev/shm (MPS guide, "Limitations"); containers start with 64 MiB.
SHM_ADVISED = 1 << 30
#: TorchServe's last release, the only one whose worker entry is known.
TORCHSERVE = "0.12.0"
#: Where CUDA looks for a daemon if nobody says otherwise.
DEFAULT_PIPE = Path("/tmp/nvidia-mps")


def check_python(found: Findings) -> None:
    """TorchServe's version, and what its workers need without declaring it."""
    try:
        installed = version("torchserve")
    except PackageNotFoundError:
        installed = "no distribution"
    if installed == TORCHSERVE:
        found.ok("torchserve", f"TorchServe {installed}.")
    else:
        found.warn("torchserve", f"TorchServe is {installed}.", f"pip install torchserve=={TORCHSERVE}")
    missing = [name for name in ("yaml", "numpy", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        found.error("packages", TsMpsError(f"TorchServe's workers need {', '.join(missing)}.", "pip install them."))
    else:
        found.ok("packages", "What TorchServe's workers need without declaring it (pyyaml, numpy, torch) is there.")


def check_java(found: Findings, environ: Mapping[str, str]) -> None:
    """The Java that a start would use."""
    found.attempt(
        "java", lambda: find_java(environ), lambda java: f"Java {java.version} from {java.source}: {java.path}"
    )


def check_gpus(
    found: Findings, wish: str, config: ServerConfig, environ: Mapping[str, str]
) -> tuple[tuple[Gpu, ...], MpsChoice | None]:
    """Driver, GPUs in use, and whether MPS will be on."""
    inventory = read_inventory()
    _driver(found, inventory)
    gpus = found.attempt(
        "visible GPUs",
        lambda: visible_gpus(inventory, config, environ),
        lambda seen: f"In use: {', '.join(f'GPU {gpu.index}' for gpu in seen) or 'none'}.",
    )
    try:
        mps = choose_mps(wish, inventory, gpus or (), environ)
    except TsMpsError as error:
        found.error("MPS", error)
        return gpus or (), None
    if mps.on or wish == "off":
        found.ok("MPS", mps.why)
    else:
        found.warn("MPS", mps.why, "Workers will run without MPS, on the CPU where there is no GPU.")
    for gpu in gpus or ():
        _gpu(found, gpu, mps, environ)
    return gpus or (), mps


def _driver(found: Findings, inventory: Inventory) -> None:
    if inventory.problem:
        found.warn("driver", inventory.problem, "Install NVIDIA's driver, or serve on the CPU.")
    else:
        found.ok("driver", f"NVIDIA driver {inventory.driver_version}, {len(inventory.gpus)} GPU(s).")


def _gpu(found: Findings, gpu: Gpu, mps: MpsChoice, environ: Mapping[str, str]) -> None:
    check = f"GPU {gpu.index}"
    major, minor = gpu.compute_capability
    what = f"{gpu.name} ({gpu.uuid}), compute capability {major}.{minor}, compute mode {gpu.compute_mode}"
    if gpu.mig_enabled:
        found.warn(check, f"{what}, in MIG mode.", "ts-mps does not plan for MIG: use whole GPUs, or --mps off.")
    elif gpu.compute_mode == "Exclusive_Process" and not mps.on:
        found.warn(check, f"{what}: without MPS only one worker can use it.", "nvidia-smi -c DEFAULT, or --mps on.")
    elif mps.on and (major, minor) < (7, 0):
        found.warn(
            check,
            f"{what}: before Volta MPS takes 16 clients and does not isolate their memory from each other.",
            "Serve only models that you trust with each other's memory.",
        )
    else:
        cap = client_cap(gpu.compute_capability, mps.version, max_connections(environ)) if mps.on else 0
        found.ok(check, what + (f", at most {cap} MPS clients." if cap else "."))


def check_foreign_mps(found: Findings, environ: Mapping[str, str]) -> None:
    """Daemons and servers that are not ours: two servers on one GPU take turns, two users wait for each other."""
    if find_binary(environ) is None:
        return
    pipe = Path(environ.get("CUDA_MPS_PIPE_DIRECTORY") or DEFAULT_PIPE)
    if Control(pipe, environ=environ, timeout=3.0).answers():
        if "CUDA_MPS_PIPE_DIRECTORY" in environ:
            found.ok("foreign daemon", f"An MPS daemon answers at {pipe}; a start adopts it.")
        else:
            found.warn(
                "foreign daemon",
                f"An MPS daemon that ts-mps did not start answers at {pipe}; kernels of its clients and of ours take "
                "turns instead of running side by side.",
                f"Set CUDA_MPS_PIPE_DIRECTORY={pipe} to adopt it, or stop it: echo quit | nvidia-cuda-mps-control",
            )
    else:
        found.ok("foreign daemon", f"No MPS daemon answers at {pipe}.")
    others = [
        process.info
        for process in psutil.process_iter(["pid", "name", "username", "uids"])
        if (process.info["name"] or "").startswith("nvidia-cuda-mps")
        and process.info["uids"] is not None
        and process.info["uids"].real != os.getuid()
    ]
    if others:
        who = ", ".join(f"{info['name']} of {info['username']} (pid {info['pid']})" for info in others)
        found.warn(
            "other users' MPS",
            f"MPS of another user is running: {who}. Only one user at a time has a server on one daemon.",
            "Run TorchServe as that user, or give each user GPUs of their own.",
        )
    else:
        found.ok("other users' MPS", "No MPS process of another user.")


def check_limits(found: Findings, environ: Mapping[str, str]) -> None:
    """Limits that MPS runs into under load."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FILES_ADVISED:
        found.warn("open files", f"ulimit -n is {files}.", f"NVIDIA advises {FILES_ADVISED}: ulimit -n {FILES_ADVISED}")
    else:
        found.ok("open files", f"ulimit -n is {files}.")
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        size = 0
    if size < SHM_ADVISED:
        found.warn(
            "/dev/shm",
            f"/dev/shm has {size >> 20} MiB, and the pinned host memory of MPS clients must fit into it.",
            "In containers: --shm-size=1g (docker), or an emptyDir of medium Memory at /dev/shm (Kubernetes).",
        )
    else:
        found.ok("/dev/shm", f"/dev/shm has {size >> 20} MiB.")
    if "OMP_NUM_THREADS" in environ:
        found.warn(
            "threads",
            f"OMP_NUM_THREADS={environ['OMP_NUM_THREADS']} is set, so every worker uses it.",
            "Unset it to have the cores divided among the workers.",
        )
    else:
        found.ok("threads", "OMP_NUM_THREADS is not set: the cores are divided among the workers.")
