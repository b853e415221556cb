"""How many MPS clients one GPU takes."""

from __future__ import annotations

from collections.abc import Mapping

#: The first control binary (CUDA 13.1) whose server takes 60 clients.
_SIXTY_CLIENTS = 13010
#: The default of CUDA_DEVICE_MAX_CONNECTIONS under MPS; more connections per client leave room for fewer clients.
DEFAULT_MAX_CONNECTIONS = 2
#: The most connections that CUDA takes (CUDA C++ Programming Guide, "CUDA Environment Variables").
_MOST_CONNECTIONS = 32


def client_cap(
    compute_capability: tuple[int, int], control_version: int, max_connections: int = DEFAULT_MAX_CONNECTIONS
) -> int:
    """The most CUDA contexts that one MPS server takes on one GPU; the next one gets CUDA error 808.

    - 16 below compute capability 7.0 (NVIDIA MPS guide, "Client-server connection limits").
    - 48 from 7.0 on (the same; measured on an H200 with control binary 13000: the 49th client is refused).
    - 60 from control binary 13010 on, while CUDA_DEVICE_MAX_CONNECTIONS is at most 2 (newer MPS guides: "up to 60
      client CUDA contexts per-device when using the default CUDA_DEVICE_MAX_CONNECTIONS limit of 2").

    Args:
        compute_capability: (major, minor).
        control_version: What :func:`ts_mps.mps.control.binary_version` read; 0 (unknown) counts as old.
        max_connections: CUDA_DEVICE_MAX_CONNECTIONS of the clients.
    """
    if compute_capability < (7, 0):
        return 16
    if control_version >= _SIXTY_CLIENTS and max_connections <= DEFAULT_MAX_CONNECTIONS:
        return 60
    return 48


def max_connections(environ: Mapping[str, str]) -> int:
    """CUDA_DEVICE_MAX_CONNECTIONS of clients with this environment; one that is no number counts as the most."""
    value = environ.get("CUDA_DEVICE_MAX_CONNECTIONS", str(DEFAULT_MAX_CONNECTIONS)).strip()
    return int(value) if value.isdecimal() else _MOST_CONNECTIONS
