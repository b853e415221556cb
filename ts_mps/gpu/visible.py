"""Which GPUs to use: CUDA_VISIBLE_DEVICES and number_of_gpu, read as CUDA and TorchServe read them."""

from __future__ import annotations

import re

from ts_mps.errors import PreflightError
from ts_mps.gpu.inventory import Gpu, Inventory


def select_gpus(inventory: Inventory, visible_devices: str | None, number_of_gpu: int | None) -> tuple[Gpu, ...]:
    """The user's GPUs, in the user's order.

    CUDA drops what it cannot find, and everything after it, without a word; here that is an error. An index is NVML's
    (PCI bus order, what ``nvidia-smi`` shows).

    Args:
        inventory: What the machine has. Without GPUs the answer is empty: there is nothing to choose from, and
            ``inventory.problem`` says why.
        visible_devices: CUDA_VISIBLE_DEVICES: None (unset) for all; "" for none; else indices, UUIDs or unambiguous
            beginnings of UUIDs, separated by commas. A negative index ends the list.
        number_of_gpu: TorchServe's number_of_gpu: at most so many, the first ones; None for no limit.

    Raises:
        PreflightError: An entry that names no GPU, several GPUs, one twice, or a MIG instance.
    """
    if not inventory.gpus:
        return ()
    chosen = inventory.gpus if visible_devices is None else _chosen(inventory, visible_devices)
    return chosen if number_of_gpu is None else chosen[: max(number_of_gpu, 0)]


def _chosen(inventory: Inventory, visible_devices: str) -> tuple[Gpu, ...]:
    if not visible_devices.strip():
        return ()
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in visible_devices.split(",")):
        if re.fullmatch(r"-\d+", entry):
            break
        gpu = _find(inventory, entry)
        if gpu in chosen:
            raise PreflightError(
                f"CUDA_VISIBLE_DEVICES={visible_devices} names GPU {gpu.index} ({gpu.uuid}) twice.",
                "Name each GPU once; CUDA would show none of them.",
            )
        chosen.append(gpu)
    return tuple(chosen)


def _find(inventory: Inventory, entry: str) -> Gpu:
    has = "This machine has: " + ", ".join(f"{gpu.index} = {gpu.uuid} ({gpu.name})" for gpu in inventory.gpus) + "."
    if entry.startswith("MIG-"):
        raise PreflightError(
            f"CUDA_VISIBLE_DEVICES names the MIG instance '{entry}'; ts-mps serves on whole GPUs only.", has
        )
    if re.fullmatch(r"\d+", entry):
        found = [gpu for gpu in inventory.gpus if gpu.index == int(entry)]
    else:
        found = [gpu for gpu in inventory.gpus if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
    if not found:
        raise PreflightError(f"CUDA_VISIBLE_DEVICES names '{entry}', which is no GPU of this machine.", has)
    if len(found) > 1:
        raise PreflightError(f"CUDA_VISIBLE_DEVICES names '{entry}', which fits {len(found)} GPUs.", has)
    return found[0]
