"""Checks of the driver, the GPUs in use, and whether MPS will be on."""

from __future__ import annotations

import importlib.util
import os
import runpy
from collections.abc import Mapping
from pathlib import Path

from ts_mps.doctor.findings import Findings
from ts_mps.errors import MpsError, TsMpsError
from ts_mps.gpu.caps import cap_of, max_connections
from ts_mps.gpu.inventory import Gpu, Inventory, read_inventory
from ts_mps.gpu.measured import measured_cap
from ts_mps.guardian.choice import MpsChoice, choose_mps, visible_gpus
from ts_mps.mps.control import find_binary
from ts_mps.paths import Home
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.server_config import ServerConfig


def check_gpus(
    found: Findings, wish: str, config: ServerConfig, environ: Mapping[str, str], home: Home | None
) -> tuple[tuple[Gpu, ...], MpsChoice | None]:
    """Driver, GPUs in use, and whether MPS will be on; the runtime folder knows which client caps were measured.

    Returns:
        The GPUs in use, and the choice; None where it cannot be made.
    """
    inventory = read_inventory()
    _driver(found, inventory)
    gpus = found.attempt(
        "visible GPUs",
        lambda: visible_gpus(inventory, config, environ),
        lambda seen: f"In use: {', '.join(f'GPU {gpu.index}' for gpu in seen) or 'none'}.",
    )
    if gpus is None:
        return (), None
    mps = _mps(found, wish, inventory, gpus, environ)
    for gpu in gpus:
        _gpu(found, gpu, mps, _cap(gpu, mps, inventory.driver_version, environ, home))
    if gpus:
        _torch(found)
    return gpus, mps


def _driver(found: Findings, inventory: Inventory) -> None:
    if not inventory.gpus:
        found.warn(
            "driver",
            inventory.problem,
            "Install NVIDIA's driver, or in a container pass the GPUs in (docker run --gpus all); `nvidia-smi -L` must "
            "list them. Without a GPU models are served on the CPU.",
        )
    elif inventory.problem:
        found.warn(
            "driver",
            inventory.problem,
            "Look at it with nvidia-smi and in the kernel's log (dmesg): a GPU that is lost (Xid 79, fallen off the "
            "bus) needs a restart of the machine. The other GPUs are used without it.",
        )
    else:
        found.ok("driver", f"NVIDIA driver {inventory.driver_version}, {len(inventory.gpus)} GPU(s).")


def _mps(
    found: Findings, wish: str, inventory: Inventory, gpus: tuple[Gpu, ...], environ: Mapping[str, str]
) -> MpsChoice | None:
    try:
        mps = choose_mps(wish, inventory, gpus, environ)
    except TsMpsError as error:
        found.error("MPS", error)
        return None
    if mps.on:
        found.ok("MPS", f"{mps.why} The program is {find_binary(environ)}.")
    elif wish == "off":
        found.ok("MPS", mps.why)
    elif not gpus:
        found.warn(
            "MPS",
            "MPS is off, and models are served on the CPU, because no GPU is in use.",
            "Nothing to do if that is meant (--mps off says so); --mps on makes it an error.",
        )
    else:
        found.warn("MPS", mps.why, "Its workers would take turns on the GPU. Choose others by CUDA_VISIBLE_DEVICES.")
    return mps


def _cap(gpu: Gpu, mps: MpsChoice | None, driver: str, environ: Mapping[str, str], home: Home | None) -> str:
    """The clients that the GPU takes, and who says so; empty without MPS."""
    if mps is None or not mps.on:
        return ""
    connections = max_connections(environ)
    measured = measured_cap(home.caps, driver, gpu.name, mps.version, connections) if home else None
    cap = cap_of(gpu, mps.version, connections, measured)
    return f", at most {cap.limit} MPS clients ({cap.why})"


def _gpu(found: Findings, gpu: Gpu, mps: MpsChoice | None, cap: str) -> None:
    check = f"GPU {gpu.index}"
    major, minor = gpu.compute_capability
    on = mps is not None and mps.on
    exclusive = gpu.compute_mode.startswith("Exclusive")
    what = f"{gpu.name} ({gpu.uuid}), compute capability {major}.{minor}, compute mode {gpu.compute_mode}"
    to_default = f"As root: nvidia-smi -i {gpu.index} -c DEFAULT"
    if gpu.compute_mode == "Prohibited":
        found.error(
            check,
            MpsError(f"{what}: no process can use it.", f"{to_default}; or leave it out by CUDA_VISIBLE_DEVICES."),
        )
    elif gpu.mig_enabled:
        found.warn(
            check,
            f"{what}, in MIG mode, on which ts-mps plans but does not serve.",
            f"As root: nvidia-smi -i {gpu.index} -mig 0; or use other GPUs by CUDA_VISIBLE_DEVICES, or --mps off.",
        )
    elif exclusive and not on:
        found.warn(check, f"{what}: without MPS only one worker can use it.", f"{to_default}; or serve with MPS.")
    elif mps is not None and mps.on and (major, minor) < (7, 0):
        found.warn(
            check,
            f"{what}: before Volta MPS takes 16 clients and does not isolate their memory from each other.",
            "Serve only models that you trust with each other's memory.",
        )
    else:
        found.ok(check, what + cap + (": only MPS can use it." if exclusive else "."))


def check_exclusive(found: Findings, arguments: StartArguments, gpus: tuple[Gpu, ...], mps: MpsChoice) -> None:
    """Whether ``--exclusive`` may change the compute mode."""
    if not arguments.exclusive or mps.adopted_pipe is not None:
        return
    if os.geteuid() != 0 and any(gpu.compute_mode != "Exclusive_Process" for gpu in gpus):
        found.warn(
            "--exclusive",
            "Changing the compute mode of a GPU needs root, and you are not root.",
            "Leave out --exclusive, or have the mode set beforehand: nvidia-smi -c EXCLUSIVE_PROCESS",
        )
    else:
        found.ok("--exclusive", "The GPUs are in compute mode EXCLUSIVE_PROCESS, or you may put them there.")


def _torch(found: Findings) -> None:
    """Whether torch was built for CUDA, without importing it: that takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return  # a finding of its own
    build = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    if build.get("cuda"):
        found.ok("torch", f"torch {build['__version__']} is built for CUDA {build['cuda']}.")
    else:
        found.warn(
            "torch",
            f"torch {build['__version__']} is built without CUDA, so models that use it cannot use the GPU.",
            "Install a build for CUDA: pip install --force-reinstall torch (without the --index-url of CPU builds).",
        )
