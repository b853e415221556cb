"""``--probe-cap``: measure one GPU's client cap and keep it for later plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ts_mps.errors import PreflightError, UsageError
from ts_mps.gpu.inventory import Gpu, Inventory, read_inventory
from ts_mps.gpu.measured import remember_cap
from ts_mps.gpu.visible import select_gpus
from ts_mps.mps.probe import CapProbe, probe_cap
from ts_mps.paths import Home


@dataclass(frozen=True)
class CapResult:
    """What was measured.

    Attributes:
        index: NVML's index of the GPU.
        driver_version: Of NVIDIA's driver.
        probe: What the probe found.
        kept: The file that keeps it for later plans; empty where only "at least" is known.
    """

    index: int
    driver_version: str
    probe: CapProbe
    kept: str


def measure_cap(
    home: Home, index: int | None, environ: Mapping[str, str], report: Callable[[str], None] = lambda text: None
) -> CapResult:
    """Probe the cap of a GPU and keep it.

    Args:
        home: The runtime folder.
        index: NVML's index; None for the first GPU that CUDA_VISIBLE_DEVICES leaves.
        environ: Environment of the caller.
        report: Is told how far it is.

    Raises:
        UsageError: There is no GPU of this index.
        PreflightError: There is no GPU, or it cannot be probed now.
        MpsError: MPS does not work on it.
    """
    inventory = read_inventory()
    gpu = _choose(inventory, index, environ)
    probe = probe_cap(gpu, home, environ=environ, report=report)
    if probe.exact:
        remember_cap(
            home.caps, inventory.driver_version, gpu.name, probe.control_version, probe.connections, probe.held
        )
    return CapResult(gpu.index, inventory.driver_version, probe, str(home.caps) if probe.exact else "")


def _choose(inventory: Inventory, index: int | None, environ: Mapping[str, str]) -> Gpu:
    if not inventory.gpus:
        raise PreflightError(f"There is no GPU whose cap could be measured: {inventory.problem}")
    if index is None:
        visible = select_gpus(inventory, environ.get("CUDA_VISIBLE_DEVICES"), None)
        if not visible:
            raise PreflightError(
                "CUDA_VISIBLE_DEVICES leaves no GPU whose cap could be measured.", "Name one: --gpu N."
            )
        return visible[0]
    found = [gpu for gpu in inventory.gpus if gpu.index == index]
    if not found:
        has = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in inventory.gpus)
        raise UsageError(f"--gpu {index}: this machine has no GPU of this index.", f"It has: {has}.")
    return found[0]
