"""How many MPS clients one GPU takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ts_mps.gpu.inventory import Gpu, MigInstance

_VOLTA = (7, 0)
#: The first control binary (CUDA 13.1) whose server takes 60 clients.
_SIXTY_CLIENTS = 13010
#: The default of CUDA_DEVICE_MAX_CONNECTIONS under MPS; more connections per client leave room for fewer clients.
DEFAULT_MAX_CONNECTIONS = 2
#: The most connections that CUDA takes (CUDA C++ Programming Guide, "CUDA Environment Variables").
_MOST_CONNECTIONS = 32
#: Compute slices of a whole GPU that has MIG (NVIDIA MIG user guide, "Concepts").
_SLICES = 7


@dataclass(frozen=True)
class Cap:
    """How many MPS clients fit.

    Attributes:
        limit: CUDA contexts that one MPS server takes on one GPU or MIG instance; at least 1.
        why: Where that comes from, as a part of a sentence: "measured", "control binary 13000".
    """

    limit: int
    why: str


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
    if compute_capability < _VOLTA:
        return 16
    if control_version >= _SIXTY_CLIENTS and max_connections <= DEFAULT_MAX_CONNECTIONS:
        return 60
    return 48


def cap_of(
    gpu: Gpu,
    control_version: int,
    connections: int = DEFAULT_MAX_CONNECTIONS,
    measured: int | None = None,
    instance: MigInstance | None = None,
) -> Cap:
    """The cap of a GPU, or of one of its MIG instances, and where it comes from.

    On a MIG instance the cap of the whole GPU is "lowered proportionally" to the size of the compute instance (NVIDIA
    MPS guide, "Client-server connection limits"): rounded down here, and at least 1.

    Args:
        gpu: The GPU.
        control_version: As for :func:`client_cap`.
        connections: CUDA_DEVICE_MAX_CONNECTIONS of the clients.
        measured: What ``ts-mps doctor --probe-cap`` found on this driver and GPU; it wins. None if nothing was
            measured. A whole GPU's measurement is scaled for a MIG instance like the documented cap.
        instance: The MIG instance; None for the whole GPU.
    """
    if measured is not None:
        whole = Cap(measured, "measured")
    else:
        limit = client_cap(gpu.compute_capability, control_version, connections)
        if gpu.compute_capability < _VOLTA:
            why = "compute capability {}.{}".format(*gpu.compute_capability)
        elif control_version == 0:
            why = "control binary of unknown version"
        elif control_version >= _SIXTY_CLIENTS and connections > DEFAULT_MAX_CONNECTIONS:
            why = f"control binary {control_version} with CUDA_DEVICE_MAX_CONNECTIONS={connections}"
        else:
            why = f"control binary {control_version}"
        whole = Cap(limit, why)
    if instance is None:
        return whole
    if gpu.sms and instance.sms:
        part, of, unit = instance.sms, gpu.sms, "SMs"
    else:
        part, of, unit = instance.slices, _SLICES, "slices"
    return Cap(
        max(1, whole.limit * part // of),
        f"{whole.why}: {whole.limit} for the whole GPU, of whose {of} {unit} it has {part}",
    )


def max_connections(environ: Mapping[str, str]) -> int:
    """CUDA_DEVICE_MAX_CONNECTIONS of clients with this environment; one that is no number counts as the most."""
    value = environ.get("CUDA_DEVICE_MAX_CONNECTIONS", str(DEFAULT_MAX_CONNECTIONS)).strip()
    return int(value) if value.isdecimal() else _MOST_CONNECTIONS
