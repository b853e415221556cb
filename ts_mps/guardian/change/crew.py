"""The workers of one model: looked at, sent away one at a time, made more or fewer, and never a request lost."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress

from ts_mps.activity import Attention
from ts_mps.errors import NotReadyError, TsMpsError
from ts_mps.guardian.change.merge import Key
from ts_mps.guardian.change.parking import PARKED_SECONDS, Parking
from ts_mps.guardian.change.stage import Stage
from ts_mps.guardian.watch.seen import ROLLED, SCALED_DOWN
from ts_mps.torchserve.api import ModelStatus
from ts_mps.torchserve.client import ApiError
from ts_mps.torchserve.failures import failures
from ts_mps.torchserve.threads import LOAD_SECONDS, Thread, quiet_seconds, to_ask_for
from ts_mps.torchserve.word import GIVEN_BACK, LEAVING_SECONDS, NOT_ALONE, Word
from ts_mps.worker_records import WorkerRecord, ask, is_parked, records, workers

#: Seconds between two looks at the slots.
PAUSE = 0.1
#: Seconds beyond TorchServe's response timeout in which some worker must have taken a word: it waits for its turn.
PATIENCE = 30.0
#: What TorchServe says of a worker that ended with a request in its hands; the second where it was killed.
_DIED = (500, 507)


class Crew:
    """The workers of one version of one model.

    Args:
        stage: The change.
        key: Model and version, as the plan names them.
    """

    def __init__(self, stage: Stage, key: Key) -> None:
        self._stage = stage
        self._paths = stage.prepared.paths
        self.key = key
        self._version = key[1] or ""
        self.name = key[0] if key[1] is None else f"{key[0]} {key[1]}"

    def records(self) -> list[WorkerRecord]:
        """Its living workers."""
        return [w for w in workers(self._paths) if (w.slot.model, w.slot.version) == self.key]

    def pids(self) -> set[int]:
        """Pids of its living workers."""
        return {worker.pid for worker in self.records()}

    def status(self) -> ModelStatus:
        """What TorchServe says of it.

        Raises:
            TsMpsError: TorchServe does not answer, or does not know it.
        """
        for status in self._stage.api.describe(self.key[0]):
            if self._version in ("", status.version):
                self._version = status.version
                return status
        raise TsMpsError(f"TorchServe knows no version {self.key[1]} of model {self.key[0]}.")

    def check_listening(self) -> None:
        """Refuse a crew that cannot be asked to leave.

        Raises:
            TsMpsError: It cannot; why, as a sentence.
        """
        if any(worker.state == "ready" and not worker.listens for worker in self.records()):
            raise TsMpsError(
                f"Workers of model {self.name} cannot be replaced one at a time without loss: it has "
                f"{', '.join(NOT_ALONE[:-1])} or {NOT_ALONE[-1]}, under which TorchServe keeps requests with a worker.",
                "Restart the whole, which drains it: ts-mps restart.",
            )
        status = self.status()
        if status.workers and not self.records():
            raise TsMpsError(
                f"TorchServe starts the workers of model {self.name} past ts-mps, so they cannot be asked to leave.",
                "Restart the whole, which drains it: ts-mps restart.",
            )
        if status.retry_seconds == 0:
            raise TsMpsError(
                f"Model {self.name} has maxRetryTimeoutInSec: 0, so TorchServe starts no worker in another's place.",
                "Restart the whole, which drains it: ts-mps restart.",
            )

    def threads(self) -> tuple[Thread, ...]:
        """TorchServe's threads for its workers, in TorchServe's order.

        TorchServe does not say which of them gave up: the same "UNLOADING" stands for one that waits for its next try.
        Nobody is taken for one that gave up while any thread of the model may be trying: a slot tells of its last
        worker only, which may be another thread's by now.
        """
        status = self.status()
        quiet = quiet_seconds(status.retry_seconds)
        tried = self._tried(time.monotonic() - quiet)
        # A thread whose worker was ready tries again within a second.
        going = {w.pid for w, lives in records(self._paths) if lives or w.state == "ready"}
        return tuple(
            Thread(w.pid, w.ready, gave_up=not (w.ready or tried or w.pid in going or w.pid <= 0))
            for w in status.workers
        )

    def _tried(self, since: float) -> bool:
        """Whether a worker of the model failed to load since then, or may have been killed while it loaded."""
        name = self.key[0]
        return (
            any(failure.model == name for failure in failures(self._paths, since=since))
            or self._stage.lost_loading(name) >= since
            # For what the watch has not seen: its record is of when it began to load.
            or any(
                w.slot.model == name and w.state != "ready" and w.clock >= since - LOAD_SECONDS
                for w, _ in records(self._paths)
            )
        )

    def grow(self, count: int) -> None:
        """Have TorchServe start workers until so many threads work."""
        self._scale(to_ask_for(self.threads(), count))

    def wait(self, count: int, *, without: Collection[int] = ()) -> None:
        """Wait until so many are ready, and with MPS proven clients.

        Args:
            count: How many.
            without: Pids that do not count: they are leaving.

        Raises:
            NotReadyError: A worker did not load, or the time of ``--wait-timeout`` is over.
        """
        since = time.monotonic()
        deadline = since + self._stage.prepared.arguments.wait_timeout
        while True:
            self._stage.check()
            ready = [w for w in self.records() if w.pid not in without and self._serves(w)]
            if len(ready) >= count:
                return
            self._check_failures(since)
            if time.monotonic() > deadline:
                raise NotReadyError(
                    f"Of {count} workers of model {self.name} only {len(ready)} were ready after "
                    f"{self._stage.prepared.arguments.wait_timeout:g} s; the change ends here.",
                    "See ts-mps status and logs/model_log.log; TorchServe goes on trying.",
                )
            time.sleep(PAUSE)

    def send_away(self, pids: Collection[int]) -> int:
        """Have one of these leave between two batches; TorchServe then starts a successor.

        Returns:
            The pid of the one that left.

        Raises:
            TsMpsError: None of them took the word in time.
        """
        patience = self._patience()
        deadline = time.monotonic() + patience
        self._stage.asked.update(dict.fromkeys(pids, ROLLED))
        while True:
            self._stage.check()
            until = max(deadline, time.monotonic() + 1.0)
            taken = self.tell(Word("leave", tuple(pids), until, self._stage.secret), patience)
            grace = time.monotonic() + (LEAVING_SECONDS + 5.0 if taken else 0.0)
            while True:
                left = set(pids) - self.pids()
                if left:
                    return min(left)
                if time.monotonic() >= grace:
                    break
                time.sleep(PAUSE / 10)
            if time.monotonic() > deadline:
                raise self._no_taker(patience)

    def shrink(self, count: int) -> None:
        """End workers until so many are left: those that TorchServe started last, as it always does.

        First each of them takes a word and keeps it, so that TorchServe ends no thread that holds a request.

        Raises:
            TsMpsError: They did not take the word in time, or TorchServe did not scale.
        """
        deadline = time.monotonic() + self._stage.prepared.arguments.wait_timeout
        # A thread of TorchServe's that is just starting a worker again would go on unseen after it was ended.
        threads = self.threads()
        while not all(thread.ready or thread.gave_up for thread in threads):
            self._stage.check()
            if time.monotonic() > deadline:
                raise NotReadyError(f"Not all workers of model {self.name} are ready, so none is ended.")
            time.sleep(PAUSE * 5)
            threads = self.threads()
        left = to_ask_for(threads, count)
        last = {thread.pid for thread in threads[left:] if not thread.gave_up}
        self._stage.asked.update(dict.fromkeys(last, SCALED_DOWN))
        with Parking(self, last, self._stage, max(PARKED_SECONDS, self._patience())):
            self._scale(left)
        gone = time.monotonic() + LEAVING_SECONDS
        while last & self.pids() and time.monotonic() < gone:
            time.sleep(PAUSE)

    def heed(self, attention: Attention) -> None:
        """Ask for the attention of every living worker."""
        for worker in self.records():
            with suppress(OSError):  # it has just gone
                ask(self._paths, worker.slot.number, attention, self._stage.secret)

    def parked(self) -> set[int]:
        """Pids of those that wait with a word in their hands."""
        return {worker.pid for worker in self.records() if is_parked(self._paths, worker.slot.number)}

    def tell(self, word: Word, patience: float) -> bool:
        """Send a word.

        Returns:
            Whether a worker took it and ended: TorchServe then says that it died.
        """
        self.heed(Attention.LISTEN)
        try:
            self._stage.api.tell(self.key[0], self._version, word.header(), patience)
        except ApiError as error:
            if error.status not in (GIVEN_BACK, *_DIED):
                time.sleep(PAUSE)  # the queue is full: others' requests come first
            return error.status in _DIED
        return False

    def _scale(self, threads: int) -> None:
        self._stage.api.scale(self.key[0], self._version, threads)

    def _serves(self, worker: WorkerRecord) -> bool:
        mps = self._stage.plan.mps and worker.slot.gpu is not None
        return worker.state == "ready" and (worker.proof is not None or not mps)

    def _check_failures(self, since: float) -> None:
        for failure in failures(self._paths, since=since):
            if failure.model == self.key[0] and not failure.again:
                raise NotReadyError(
                    f"A worker of model {self.name} did not load: {failure.what}",
                    "The change ends here; the others serve on, and TorchServe goes on trying.",
                    "\n".join(failure.traceback.splitlines()[-20:]),
                )

    def _patience(self) -> float:
        return self.status().response_timeout + PATIENCE

    def _no_taker(self, seconds: float) -> TsMpsError:
        return TsMpsError(
            f"No worker of model {self.name} could be asked to leave within {seconds:g} s: none came to the end of a "
            "batch, or its queue was full all the time.",
            "See ts-mps status --watch; try again when there is less to do.",
        )
