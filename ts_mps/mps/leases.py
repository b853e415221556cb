"""Who uses a GPU's daemon: one file per instance, held by flock while its guardian lives."""

from __future__ import annotations

import os

from ts_mps.errors import MpsError
from ts_mps.files import is_locked, try_lock
from ts_mps.paths import GpuPaths


class HeldLease:
    """An instance's lease, held from now on. Make, drop and list leases under ``GpuPaths.lock`` only.

    Raises:
        MpsError: A living process holds it.
    """

    def __init__(self, paths: GpuPaths, instance: str) -> None:
        self.paths = paths
        self._path = paths.leases / instance
        self._descriptor = try_lock(self._path)
        if self._descriptor is None:
            raise MpsError(
                f"Instance '{instance}' is running and holds the MPS daemon of {paths.root.name}.",
                f"Stop it first (ts-mps stop --name {instance}), or choose another --name.",
            )

    @property
    def held(self) -> bool:
        """Whether it was not let go."""
        return self._descriptor is not None

    def drop(self) -> None:
        """Let go; a second call does nothing."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def holders(paths: GpuPaths, *, but: str = "") -> list[str]:
    """Names of the instances that hold a lease now, without ``but``."""
    return [path.name for path in sorted(paths.leases.glob("*")) if path.name != but and is_locked(path)]
