"""Carrying out what was judged, beside the watch: ending a client or starting a daemon may take many seconds."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress

from ts_mps.errors import MpsError, TsMpsError
from ts_mps.guardian.watch.memory import Action, EndProcesses, LearnTimeout, RestoreDaemon, ReviveModel, ScaleModel
from ts_mps.mps.daemon import Lease, terminate_and_kill
from ts_mps.torchserve.api import Api, ModelStatus
from ts_mps.torchserve.client import ApiError
from ts_mps.torchserve.threads import quiet_seconds

#: Seconds for a daemon to answer one ``terminate_client``; then its clients are killed all the same.
TERMINATE_SECONDS = 2.0
#: Seconds for the answer of a daemon that is to be replaced if it does not give one.
ANSWER_SECONDS = 3.0
#: Tries to reach TorchServe's management API, and seconds between two: it may just be starting, or be away for long.
API_TRIES = 100
API_PAUSE = 3.0


class Actor:
    """Does things in threads: one after the other for what is about the same GPU or model, side by side otherwise.

    Args:
        leases: UUID -> the lease on its daemon.
        api: TorchServe's management API.
        at_once: GPUs and models together: none of them waits for another.
    """

    def __init__(self, leases: Mapping[str, Lease], api: Api, at_once: int) -> None:
        self._leases = leases
        self._api = api
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=max(1, at_once), thread_name_prefix="repair")
        self._running: dict[str, Future[None]] = {}
        #: Model -> seconds after which TorchServe kills a worker that does not answer; infinite where it did not say.
        self.timeouts: dict[str, float] = {}
        #: Models of which TorchServe was asked for that and has not answered, or not yet.
        self.unlearnt: set[str] = set()
        #: Model and version -> the number of workers that TorchServe was asked for last, and took.
        self.scaled: dict[tuple[str, str], int] = {}
        #: Model and version -> when TorchServe was last asked for workers; its threads then try anew.
        self._asked: dict[tuple[str, str], float] = {}

    @property
    def busy(self) -> frozenset[str]:
        """What is being acted upon, or was until :meth:`finished` is called next."""
        return frozenset(self._running)

    @property
    def acting(self) -> bool:
        """Whether something is being done right now."""
        return any(not future.done() for future in self._running.values())

    def start(self, actions: Sequence[Action]) -> None:
        """Start doing these; none of them is about anything that is busy."""
        todo: dict[str, list[Action]] = {}
        for action in actions:
            todo.setdefault(action.about, []).append(action)
            if isinstance(action, LearnTimeout):
                self.unlearnt.add(action.model)
        for about, mine in todo.items():
            self._running[about] = self._pool.submit(self._do, mine)

    def finished(self) -> dict[str, str]:
        """What was done since the last call: what it was about, and why it failed, as a sentence, or empty."""
        done = {about: future for about, future in self._running.items() if future.done()}
        for about in done:
            del self._running[about]
        errors = {about: future.exception() for about, future in done.items()}
        # Some errors say nothing, and an empty sentence means that all is well.
        return {about: str(error) or repr(error) if error else "" for about, error in errors.items()}

    def close(self, seconds: float) -> None:
        """Wait at most so long for what is being done; nothing new is begun. A second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        wait(tuple(self._running.values()), seconds)

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if self._closing.is_set():
                return
            match action:
                case EndProcesses():
                    self._end(action)
                case RestoreDaemon():
                    self._leases[action.gpu].ensure(answer_s=ANSWER_SECONDS)
                case ScaleModel():
                    self._scale(action)
                case ReviveModel():
                    self._revive(action)
                case LearnTimeout():
                    self._learn(action.model)

    def _end(self, action: EndProcesses) -> None:
        """End processes, each whatever becomes of the others.

        Raises:
            MpsError: Some of them are not ours to end.
        """
        lease = self._leases.get(action.gpu)
        living = [process for process in action.processes if process.alive()]
        if lease is not None and action.through_mps:
            with suppress(MpsError, OSError):  # without the control program they are killed all the same
                pids = [process.pid for process in living]
                terminate_and_kill(lease.pipe, pids, environ=lease.environ, timeout_s=TERMINATE_SECONDS)
        refused = []
        for process in living:
            try:
                process.send(signal.SIGKILL)
            except PermissionError:
                refused.append(str(process.pid))
        if refused:
            raise MpsError(
                f"The processes {', '.join(refused)} on GPU {action.gpu} cannot be ended: they are another user's.",
                f"End them as that user: kill -9 {' '.join(refused)}",
            )

    def _described(self, model: str) -> tuple[ModelStatus, ...]:
        """TorchServe's description of a model, asked for again if it does not answer.

        Raises:
            ApiError: It does not answer at all, it does not know the model, or the guardian ends.
        """
        for left in reversed(range(API_TRIES)):
            try:
                return self._api.describe(model)
            except ApiError as error:
                if 400 <= error.status < 500 or not left or self._closing.wait(API_PAUSE):
                    raise
        raise AssertionError  # the last try returns or raises

    def _scale(self, action: ScaleModel) -> None:
        key = (action.model, action.version)
        self.scaled.pop(key, None)  # without an answer nobody knows
        for status in self._described(action.model):
            if action.version in ("", status.version):
                self._api.scale(action.model, status.version, action.workers)
                self.scaled[key] = action.workers
                self._asked[key] = time.monotonic()
        if key not in self.scaled:
            raise TsMpsError(
                f"TorchServe knows no version {action.version} of model {action.model}, which is in the plan.",
                "Register it again, or restart the whole: ts-mps restart.",
            )

    def _revive(self, action: ReviveModel) -> None:
        """Have TorchServe start new worker threads beside those of its own that gave up, which it never starts again.

        Who asked TorchServe for fewer workers than planned gets no more than that.
        """
        key = (action.model, action.version)
        quiet = time.monotonic() - max(action.last, self._asked.get(key, 0.0))
        for status in self._api.describe(action.model):
            missing = min(status.min_workers, action.planned) - action.living
            # Beside a thread that still tries there would be one worker more than planned.
            gave_up = quiet > quiet_seconds(status.retry_seconds)
            if action.version in ("", status.version) and missing > 0 and gave_up:
                self._api.scale(action.model, status.version, len(status.workers) + missing)
                self._asked[key] = time.monotonic()

    def _learn(self, model: str) -> None:
        said = [status.response_timeout for status in self._described(model)]
        self.timeouts[model] = float(max(said)) if said and all(said) else float("inf")
        self.unlearnt.discard(model)
