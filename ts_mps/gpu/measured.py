"""Client caps that were measured on this machine, kept for later plans."""

from __future__ import annotations

import time
from pathlib import Path

from ts_mps.files import read_json, write_json

_VERSION = 1


def measured_cap(path: Path, driver_version: str, gpu_name: str, control_version: int, connections: int) -> int | None:
    """The cap that was measured on this driver, GPU and control binary, with so many connections per client.

    Args:
        path: The file (:attr:`ts_mps.paths.Home.caps`).
        driver_version: As in :class:`~ts_mps.gpu.inventory.Inventory`.
        gpu_name: The product's name: GPUs of one product do not differ.
        control_version: Binary version of the control program.
        connections: CUDA_DEVICE_MAX_CONNECTIONS of the clients, on which the cap depends.

    Returns:
        Clients; None if it was never measured so, or the file cannot be read.
    """
    record = _records(path).get(_key(driver_version, gpu_name, control_version, connections))
    limit = record.get("limit") if isinstance(record, dict) else None
    return limit if isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1 else None


def remember_cap(
    path: Path, driver_version: str, gpu_name: str, control_version: int, connections: int, limit: int
) -> None:
    """Keep a measured cap, beside those of other drivers and GPUs.

    Raises:
        OSError: The file cannot be written.
    """
    record = {"limit": limit, "time": round(time.time())}
    caps = {**_records(path), _key(driver_version, gpu_name, control_version, connections): record}
    write_json(path, {"version": _VERSION, "caps": caps})


def _records(path: Path) -> dict[str, object]:
    value = read_json(path) or {}
    caps = value.get("caps")
    return caps if value.get("version") == _VERSION and isinstance(caps, dict) else {}


def _key(driver_version: str, gpu_name: str, control_version: int, connections: int) -> str:
    return f"driver {driver_version}, {gpu_name}, control binary {control_version}, {connections} connections"
