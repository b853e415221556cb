"""A worker thread that the real TorchServe gave up: it stays in the list, and every change goes on beside it."""

from __future__ import annotations

import json
import os
import signal
import time

from sending import ECHO_IN_BATCHES, Senders
from serving import Serving
from support import eventually

from ts_mps.holds import Hold, hold_back
from ts_mps.torchserve.failures import failures

#: Seconds for which TorchServe tries to start a worker again; longer than any of its pauses within that time.
RETRY = 5


def kill_the_first_thread(serving: Serving) -> None:
    """Hold the place of the first thread's worker back until TorchServe has given the thread up."""
    paths = serving.paths()
    pid = serving.api().describe("echo")[0].workers[0].pid
    (slot,) = [worker.slot.number for worker in serving.workers() if worker.pid == pid]
    hold_back(paths, {slot: Hold("It crashed again and again.")})
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: (tries := failures(paths)) and tries[-1].clock < time.monotonic() - 2 * RETRY, 60)
    hold_back(paths, {})
    # As if that were long ago: a minute of a test.
    for file in paths.failures.glob("*.json"):
        value = json.loads(file.read_text())
        file.write_text(json.dumps({**value, "clock": value["clock"] - 3600}))


def change(serving: Serving, *words: str) -> tuple[bool, ...]:
    """Make a change; which of TorchServe's threads are ready then."""
    done = serving.ts_mps(*words)
    assert done.returncode == 0, done.stderr
    assert eventually(lambda: serving.status().as_planned, 10), serving.status().problems
    assert [worker for worker in serving.workers() if not worker.planned] == []
    return tuple(worker.ready for worker in serving.api().describe("echo")[0].workers)


def test_changes_count_the_threads_that_work(serving):
    serving.environ["OMP_NUM_THREADS"] = "1"
    serving.archive("echo", ECHO_IN_BATCHES, workers=2, batchSize=4, maxBatchDelay=20, maxRetryTimeoutInSec=RETRY)
    done = serving.start("--models", "echo.mar", "--disable-token-auth", "--wait-timeout", "40")
    assert done.returncode == 0, done.stderr
    kill_the_first_thread(serving)
    with Senders(serving, "echo", clients=4) as senders:
        assert senders.until(20)
        assert change(serving, "scale", "echo", "3") == (False, True, True, True)
        assert change(serving, "scale", "echo", "1") == (False, True)
        (before,) = serving.workers()
        assert change(serving, "restart", "--rolling") == (False, True)
        (after,) = serving.workers()
        assert after.pid != before.pid
    assert senders.sent.lost == [] and senders.sent.good > 50
    assert serving.ts_mps("stop").returncode == 0
    assert serving.left() == []
