"""Waiting until every worker that was asked for is READY and, with MPS, proven; or ending early with the reason."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ts_mps.errors import NotReadyError, TsMpsError
from ts_mps.files import last_lines
from ts_mps.paths import InstancePaths
from ts_mps.torchserve.api import Api, ModelStatus
from ts_mps.torchserve.failures import WorkerFailure, failures
from ts_mps.worker_records import WorkerRecord, workers

#: Pause between two looks at the slots. TorchServe itself is asked only once the slots say that all is ready,
#: because describing a model makes it start one nvidia-smi per worker.
PAUSE = 0.1

#: How many workers of a start may leave for a reason that need not stand for the next one.
SECOND_CHANCES = 2


@dataclass(frozen=True)
class Expected:
    """What must become ready.

    Attributes:
        models: Registered names that TorchServe was asked to load and that we could read beforehand.
        scale: (name, version) -> workers, where ``--workers`` differs from what TorchServe starts by itself; the
            version is "" where it is not known beforehand.
        proven: Whether every worker must be an MPS client.
        unmanaged: Names of models whose workers TorchServe starts past our entry (only without MPS): they hold no
            slots, so TorchServe's word alone counts.
    """

    models: tuple[str, ...]
    scale: Mapping[tuple[str, str], int]
    proven: bool
    unmanaged: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Evidence:
    """Where a failed start looks for the reason: TorchServe's own logs.

    Attributes:
        console: Java's standard output, if it goes to a file.
        logs: TorchServe's log folder.
    """

    console: Path | None
    logs: Path

    def text(self, lines: int = 20) -> str:
        """The last lines of the logs that exist."""
        files = [file for file in (self.console, self.logs / "ts_log.log", self.logs / "model_log.log") if file]
        return "\n".join(f"--- {file}\n{text}" for file in files if (text := last_lines(file, lines)))


def wait_ready(
    paths: InstancePaths,
    api: Api,
    expected: Expected,
    evidence: Evidence,
    *,
    timeout: float,
    java_status: Callable[[], int | None],
    pause: Callable[[float], None],
    report: Callable[[str], None],
) -> tuple[ModelStatus, ...]:
    """Wait until all is ready.

    Args:
        paths: The instance.
        api: TorchServe's management API.
        expected: What must become ready.
        evidence: Logs to quote in an error.
        timeout: Seconds from now.
        java_status: java's exit status, None while it runs.
        pause: Sleeps; raises if the start is interrupted.
        report: Told about progress.

    Returns:
        Every model, as TorchServe describes it.

    Raises:
        NotReadyError: java ended, a model was not registered, a worker did not load, or the time ran out.
    """
    began = time.monotonic()
    deadline = time.monotonic() + timeout
    wanted: dict[tuple[str, str], int] | None = None
    seen = ""
    while True:
        pause(PAUSE)
        _check_java(java_status(), evidence)
        _check_failures(failures(paths, since=began - 1))
        if wanted is None and (registered := _registered(api)) is not None:
            _check_registered(expected, registered, evidence)
            wanted = _scaled(api, expected, registered)
        if wanted is not None:
            ready = _ready(paths, expected.proven)
            held = {key: count for key, count in wanted.items() if key[0] not in expected.unmanaged}
            done = sum(min(count, ready[key]) for key, count in held.items())
            seen = _tell(f"{done} of {sum(wanted.values())} workers ready", seen, report)
            if done == sum(held.values()) and (models := _all_ready(api, paths, wanted, expected)) is not None:
                return models
        if time.monotonic() > deadline:
            raise NotReadyError(
                f"Not every worker was ready after {timeout:g} s ({seen or 'TorchServe does not answer yet'}).",
                "Give it longer with --wait-timeout, or see why in the log lines below.",
                evidence.text(),
            )


def _tell(text: str, seen: str, report: Callable[[str], None]) -> str:
    if text != seen:
        report(text)
    return text


def _check_java(status: int | None, evidence: Evidence) -> None:
    if status is None:
        return
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    raise NotReadyError(
        f"TorchServe ended {how} before it was ready.", "Its last log lines are below.", evidence.text()
    )


def _check_failures(found: tuple[WorkerFailure, ...]) -> None:
    # TorchServe starts another worker in the place of one that left.
    final = [failure for failure in found if not failure.again]
    if not final and len(found) <= SECOND_CHANCES:
        return
    first = final[0] if final else found[0]
    version = f" (version {first.version})" if first.version else ""
    raise NotReadyError(
        f"A worker of model {first.model}{version} did not load: {first.what}",
        "The start was ended at once instead of letting TorchServe try again for minutes.",
        "\n".join(first.traceback.splitlines()[-20:]),
    )


def _registered(api: Api) -> tuple[ModelStatus, ...] | None:
    """All registered models; None while the management API does not answer."""
    try:
        return tuple(status for name in api.models() for status in api.describe(name))
    except TsMpsError:
        return None


def _check_registered(expected: Expected, registered: tuple[ModelStatus, ...], evidence: Evidence) -> None:
    missing = sorted(set(expected.models) - {status.name for status in registered})
    if missing:
        raise NotReadyError(
            f"TorchServe did not register model {', '.join(missing)}.",
            "Its last log lines are below.",
            evidence.text(),
        )


def _scaled(api: Api, expected: Expected, registered: tuple[ModelStatus, ...]) -> dict[tuple[str, str], int]:
    """Ask for the workers that ``--workers`` wants; the number that every model must reach."""
    wanted = {}
    for status in registered:
        count = expected.scale.get((status.name, status.version), expected.scale.get((status.name, "")))
        if count is not None and count != status.min_workers:
            api.scale(status.name, status.version, count)
        wanted[status.name, status.version] = status.min_workers if count is None else count
    return wanted


def _counts(worker: WorkerRecord, proven: bool) -> bool:
    return worker.state == "ready" and (not proven or worker.slot.gpu is None or worker.proof is not None)


def _ready(paths: InstancePaths, proven: bool) -> Counter[tuple[str, str]]:
    return Counter((w.slot.model, w.slot.version or "") for w in workers(paths) if _counts(w, proven))


def _all_ready(
    api: Api, paths: InstancePaths, wanted: Mapping[tuple[str, str], int], expected: Expected
) -> tuple[ModelStatus, ...] | None:
    """TorchServe's own word that as many workers as wanted are READY, each the holder of a ready slot."""
    registered = _registered(api)
    if registered is None:
        return None
    holders = {worker.pid for worker in workers(paths) if _counts(worker, expected.proven)}
    for status in registered:
        slotless = status.name in expected.unmanaged
        ready = [w for w in status.workers if w.status == "READY" and (slotless or w.pid in holders)]
        if len(ready) < wanted.get((status.name, status.version), 0):
            return None
    return registered
