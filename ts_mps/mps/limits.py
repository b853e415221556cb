"""The variables through which MPS limits one client. CUDA reads them once, when the client opens its context.

What each one does: docs/explanation/limits.md. Source: https://docs.nvidia.com/deploy/mps/, "Environment Variables".
"""

from __future__ import annotations

from collections.abc import Mapping

#: Percent of the GPU's streaming multiprocessors, in (0, 100].
THREAD_PERCENTAGE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
#: Device memory by device, such as "0=4G,1=512M".
MEMORY_LIMIT = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
#: 0 normal, 1 below normal.
PRIORITY = "CUDA_MPS_CLIENT_PRIORITY"

#: A daemon that finds them in its own environment takes them as bounds for all its clients, of all instances.
CLIENT_VARIABLES = (THREAD_PERCENTAGE, MEMORY_LIMIT, PRIORITY)

_UNITS = {"G": 2**30, "M": 2**20}


def percentage_of(environ: Mapping[str, str]) -> float | None:
    """The thread percentage that this environment asks for; None if none, or none that MPS takes."""
    try:
        percentage = float(environ.get(THREAD_PERCENTAGE, ""))
    except ValueError:
        return None
    return percentage if 0 < percentage <= 100 else None


def memory_of(environ: Mapping[str, str], uuid: str) -> int | None:
    """The memory limit in bytes that this environment sets for a process whose one device is ``uuid``.

    None if it sets none, or none in the form that MPS takes: a whole number with G, M, GB or MB, for an ordinal or a
    UUID.
    """
    found = None
    for entry in environ.get(MEMORY_LIMIT, "").split(","):
        device, _, size = (part.strip() for part in entry.partition("="))
        size = size.upper().removesuffix("B")
        number, unit = size[:-1], size[-1:]
        if device in ("0", uuid) and number.isdecimal() and unit in _UNITS:
            found = int(number) * _UNITS[unit]
    return found


def priority_of(environ: Mapping[str, str]) -> int | None:
    """The priority that this environment asks for; None if none, or none that MPS takes."""
    value = environ.get(PRIORITY, "")
    return int(value) if value in ("0", "1") else None
