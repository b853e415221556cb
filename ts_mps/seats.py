"""The clients that a GPU's MPS server takes, as files held by flock: one seat each, shared by all instances.

So the cap holds whoever asks for workers, TorchServe's management API included, and a dead worker's seat is free at
once.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ts_mps.files import is_locked, read_json, try_lock
from ts_mps.paths import GpuPaths

#: Seconds for a worker that has just taken a seat to write who it is, and between looks for that.
_WRITING_S = 0.2
_LOOK_S = 0.005


def take_seat(gpu: GpuPaths, cap: int, instance: str, model: str) -> tuple[int, int] | None:
    """Take the first free seat for this process.

    Args:
        gpu: The GPU's files.
        cap: How many seats it has.
        instance: Who takes it, for :func:`seat_holders`.
        model: The same.

    Returns:
        The seat's number and the open descriptor that holds it; None if all are taken.

    Raises:
        OSError: The seat's file cannot be written.
    """
    # Two rounds: a look at a free seat (status, or a neighbour that counts) makes it seem taken for an instant.
    for number in (*range(cap), *range(cap)):
        seat = try_lock(gpu.seats / f"{number:03}")
        if seat is not None:
            holder = json.dumps({"instance": instance, "model": model, "pid": os.getpid()}).encode()
            os.ftruncate(seat, 0)
            os.pwrite(seat, holder, 0)
            return number, seat
    return None


def seat_holders(gpu: GpuPaths) -> tuple[dict[str, Any], ...]:
    """Who holds the seats of a GPU: instance, model and pid of each living holder."""
    return tuple(_holder(seat) for seat in _held(gpu))


def seats_taken(gpu: GpuPaths) -> int:
    """How many seats of a GPU are held."""
    return len(_held(gpu))


def _held(gpu: GpuPaths) -> list[Path]:
    return [seat for seat in sorted(gpu.seats.glob("*")) if is_locked(seat)]


def _holder(seat: Path) -> dict[str, Any]:
    """Who holds a seat; {} if its file does not say so."""
    for _ in range(round(_WRITING_S / _LOOK_S)):
        holder = read_json(seat)
        if holder is not None:
            return holder
        time.sleep(_LOOK_S)
    return {}


def holders_told(gpu: GpuPaths) -> str:
    """Who holds the seats of a GPU, as a part of a sentence: "47 x bert of instance default"."""
    count = Counter(f"{h.get('model', '?')} of instance {h.get('instance', '?')}" for h in seat_holders(gpu))
    return ", ".join(f"{number} x {who}" for who, number in count.most_common())
