"""Workers that are refused at LOAD, on the real TorchServe under load: nobody's request may be lost with them."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

import pytest
from loading import Load
from serving import SLOW, Serving
from support import eventually

from ts_mps.holds import Hold, hold_back
from ts_mps.torchserve.failures import failures

#: Raises at load once a file is there, as an out-of-memory error that TorchServe's own code turns into a 507.
FULL = (
    SLOW
    + """
    def initialize(self, context):
        import os
        if os.path.exists(os.environ["FULL"]):
            raise RuntimeError("CUDA out of memory. Tried to allocate 200.00 GiB.")
"""
)


def refused_under_load(serving: Serving, begin) -> tuple[Counter[int], int]:
    """Kill all workers but one, none of which comes back; the statuses of all answers, and how many tried to load."""
    serving.archive("slow", FULL, workers=4, batchSize=4, maxBatchDelay=100)
    serving.environ["FULL"] = str(serving.folder / "full")
    serving.environ["OMP_NUM_THREADS"] = "1"
    started = serving.start("--models", "slow.mar", "--disable-token-auth")
    assert started.returncode == 0, started.stderr
    # Whoever is held back by hand is let go by a guardian that remembers better.
    serving.state().guardian.send(signal.SIGKILL)
    assert eventually(lambda: not serving.state().guardian.alive())
    begin()
    for worker in serving.workers()[1:]:
        os.kill(worker.pid, signal.SIGKILL)
    assert eventually(lambda: len(serving.workers()) == 1)
    since = time.monotonic()
    with Load(serving, "slow", clients=8, body=b"0.05") as load:
        assert eventually(lambda: len(failures(serving.paths(), since)) >= 8, 90)
    assert [worker.state for worker in serving.workers()].count("ready") == 1
    return Counter(answer.status for answer in load.answers), len(failures(serving.paths(), since))


@pytest.mark.parametrize("why", ["held back", "out of memory"])
def test_no_request_is_lost_with_a_worker_that_does_not_load(serving: Serving, why: str) -> None:
    def begin() -> None:
        if why == "held back":
            hold_back(serving.paths(), {number: Hold("It crashed again and again.") for number in range(4)})
        else:
            (serving.folder / "full").touch()

    answers, refusals = refused_under_load(serving, begin)
    assert set(answers) == {200}, (answers, refusals)
    assert serving.ts_mps("stop").returncode == 0
    assert serving.left() == []
