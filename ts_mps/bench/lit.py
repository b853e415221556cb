"""One arm served by LitServe, which takes the archive's own handler."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

import requests

from ts_mps.bench.copies import BATCH_DELAY
from ts_mps.bench.peer import PeerServer
from ts_mps.bench.records import Arm
from ts_mps.bench.site import Site

_ANSWER_S = 5.0


class LitServer(PeerServer):
    """LitServe with the arm's workers and batch size."""

    name = "LitServe"
    poll_s = 0.25

    def __init__(self, site: Site, arm: Arm) -> None:
        super().__init__(site, arm)
        #: Each worker leaves a file with its pid there once its model is loaded: LitServe itself tells no pids.
        self._loaded = self._place.root / "loaded"
        self._loaded.mkdir()

    def frontend(self) -> tuple[int, ...]:
        """As :meth:`ts_mps.bench.server.Server.frontend`: HTTP servers and the queue between them and the workers."""
        workers = self._workers()
        return tuple(process.pid for process in self._living() if process.pid not in workers)

    def _command(self, environ: Mapping[str, str]) -> Sequence[str]:
        place, site, arm = self._place, self._place.site, self._place.arm
        return [
            sys.executable,
            *("-m", "ts_mps.bench.peers.litserve_server", str(place.store / site.model)),
            *("--port", str(self._inference.port)),
            *("--path", f"/predictions/{site.model}"),
            *("--workers", str(arm.workers)),
            *("--batch-size", str(arm.batch_size)),
            *("--batch-delay-ms", arm.options.get("max_batch_delay", str(BATCH_DELAY))),
            *("--content-type", site.content_type),
            *("--accelerator", "cuda" if arm.device == "gpu" else "cpu"),
            *("--loaded", str(self._loaded)),
        ]

    def _workers(self) -> tuple[int, ...]:
        told = {int(file.name) for file in self._loaded.iterdir()}
        return tuple(sorted(process.pid for process in self._living() if process.pid in told))

    def _head(self) -> int | None:
        return self._family.pid if self._family is not None else None

    def _listens(self) -> bool:
        # LitServe listens as soon as one of its workers has loaded, so workers and this are asked.
        with suppress(requests.RequestException), requests.Session() as session:
            session.trust_env = False  # no proxy between us and the server
            return session.get(f"{self.url()}/health", timeout=_ANSWER_S).ok
        return False
