"""An MPS daemon for a server that knows nothing of MPS, or the certainty that there is none for it."""

from __future__ import annotations

from pathlib import Path

from ts_mps.bench import proof
from ts_mps.bench.cores import pinned
from ts_mps.bench.site import LeftRunning, Place
from ts_mps.errors import MpsError
from ts_mps.mps import daemon
from ts_mps.mps.control import BINARY, PIPE_VARIABLE
from ts_mps.paths import Home


class Beside:
    """What an arm's server finds of the GPU, by its environment alone.

    Args:
        place: The arm's.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lease: daemon.Lease | None = None

    def environment(self) -> dict[str, str]:
        """The environment of a server; starts the daemon where the arm says MPS.

        Raises:
            MpsError: The daemon does not start.
        """
        place, gpu = self._place, self._place.site.gpu
        environ = place.environment()
        if gpu is None or place.arm.device == "cpu":
            return {**environ, "CUDA_VISIBLE_DEVICES": ""}
        if not place.arm.mps:
            # CUDA would find a daemon at its default place; in an empty folder it finds none.
            nowhere = place.root / "no-mps"
            nowhere.mkdir()
            return {**environ, PIPE_VARIABLE: str(nowhere), "CUDA_VISIBLE_DEVICES": str(gpu.index)}
        paths = Home(place.root / "h").gpu(gpu.uuid)
        paths.root.mkdir(mode=0o700, parents=True)
        with pinned(place.site.cores):  # as the daemon of an arm of ts-mps is
            self._lease = daemon.acquire(gpu, paths, "bench", environ=environ)
        share = {}
        if place.arm.thread_percentage is not None:
            share["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{place.arm.thread_percentage:g}"
        # The daemon sees this GPU only, so to its clients it is number 0. TorchServe dies of a UUID.
        return {**environ, PIPE_VARIABLE: self._lease.daemon.pipe, "CUDA_VISIBLE_DEVICES": "0", **share}

    def clients(self) -> frozenset[int]:
        """Pids of MPS clients: of the daemon, or where there is none, all that can be found.

        Raises:
            MpsError: The daemon does not answer.
        """
        if self._lease is not None:
            return proof.listed_clients([Path(self._lease.daemon.pipe)])
        gpu = self._place.site.gpu
        return proof.clients_anywhere([gpu.uuid] if gpu else [])

    def end(self) -> None:
        """Stop the daemon, when all its clients have gone.

        Raises:
            LeftRunning: It cannot be stopped.
        """
        if self._lease is None:
            return
        try:
            said = self._lease.release()
            stays = daemon.daemon_alive(self._lease.daemon)
        except MpsError as error:
            raise LeftRunning(f"The study's MPS daemon could not be stopped: {error}") from error
        if stays:
            # Its folder stays: without it nobody could stop it any more.
            again = f"echo quit -f | {PIPE_VARIABLE}={self._lease.daemon.pipe} {BINARY}"
            raise LeftRunning(f"The study's MPS daemon was not stopped. {said}", f"Stop it with: {again}")
        self._lease = None
