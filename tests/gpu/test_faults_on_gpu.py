"""Workers of a real GPU that lose it, under MPS: what their clients get, and that all are back and attached."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import requests
import torch
from breakable import REAL
from serving import Serving
from support import eventually

from ts_mps.errors import MpsError
from ts_mps.events import recorded
from ts_mps.mps.control import Control

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]


def start(serving: Serving, workers: int) -> str:
    serving.archive("faulty", REAL, workers=workers, deviceIds=[0])
    started = serving.start("--models", "faulty.mar", "--disable-token-auth", "--mps", "on")
    assert started.returncode == 0, started.stderr
    where = serving.state().endpoints.inference
    return f"http://{where.host}:{where.port}/predictions/faulty"


def attached(serving: Serving, count: int) -> set[int]:
    """The pids of ready workers; they must be this many, and each a client of its daemon."""
    pids: set[int] = set()

    def all_back() -> bool:
        pids.clear()
        pids.update(worker.pid for worker in serving.workers() if worker.state == "ready")
        clients: set[int] = set()
        with suppress(MpsError):  # a server that recovers does not always answer
            for gpu in serving.state().gpus:
                clients |= set(Control(Path(gpu.pipe)).all_clients()) if gpu.pipe else set()
        return len(pids) == count and pids <= clients

    assert eventually(all_back, 120), serving.status()
    return set(pids)


def causes(serving: Serving) -> dict[int, str]:
    return {event.pid: event.cause for event in recorded(serving.paths()) if event.kind == "worker-fault"}


def served_by(url: str, count: int, not_by: set[int]) -> Counter[str]:
    """Send until this many workers have answered, none of them one of ``not_by``; returns what else came."""
    seen: set[int] = set()
    others: Counter[str] = Counter()
    deadline = time.monotonic() + 120
    while len(seen - not_by) < count:
        assert time.monotonic() < deadline, (seen, others)
        answer = requests.post(url, b"x", timeout=100)
        if answer.status_code == 200:
            seen.add(int(answer.text))
        else:
            others[f"{answer.status_code} {answer.json()['message']}"] += 1
    return others


@pytest.fixture
def stopped(serving: Serving):
    yield serving
    done = serving.ts_mps("stop")
    assert done.returncode == 0, done.stderr
    assert serving.left() == []


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("body", [b"wild", b"swallowed"])
def test_a_wild_pointer(stopped: Serving, workers: int, body: bytes) -> None:
    """The neighbour's context dies too, so it fails a batch unless the guardian ends it before; both return."""
    if body == b"swallowed" and not hasattr(torch, "AcceleratorError"):
        pytest.skip(f"torch {torch.__version__} has no class of its own for CUDA's errors, by which it would be seen")
    url = start(stopped, workers)
    before = attached(stopped, workers)
    lost = requests.post(url, body, timeout=60)
    assert lost.status_code == 503
    message = lost.json()["message"]
    assert "CUDA error 700: an illegal memory access was encountered" in message and "GPU 0" in message
    assert "being replaced" in message
    others = served_by(url, workers, before)
    assert sum(others.values()) <= workers - 1, others
    # 507 where TorchServe finds the exit status of a SIGKILL already there.
    assert all("being replaced" in text or text[:3] in ("500", "507") for text in others), others
    assert not attached(stopped, workers) & before
    assert "cuda-error-700" in {cause for pid, cause in causes(stopped).items() if pid in before}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_device_side_assert(stopped: Serving, workers: int) -> None:
    """MPS keeps it from the neighbour, which serves on."""
    url = start(stopped, workers)
    before = attached(stopped, workers)
    lost = requests.post(url, b"assert", timeout=60)
    assert (lost.status_code, "CUDA error 710: device-side assert triggered" in lost.text) == (503, True), lost.text
    ((dead, cause),) = causes(stopped).items()
    assert cause == "cuda-error-710"
    assert served_by(url, workers, {dead}) == Counter()
    assert before - {dead} <= attached(stopped, workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_out_of_memory(stopped: Serving, workers: int) -> None:
    url = start(stopped, workers)
    before = attached(stopped, workers)
    for _ in range(3):
        answer = requests.post(url, b"memory", timeout=60)
        assert (answer.status_code, answer.json()["message"]) == (507, "Out of resources")
    assert served_by(url, workers, set()) == Counter()
    assert attached(stopped, workers) == before and causes(stopped) == {}


def test_a_dead_context_does_not_stay(stopped: Serving) -> None:
    """It would keep the MPS server in FAULT, and every successor waiting."""
    url = start(stopped, 1)
    (pid,) = attached(stopped, 1)
    began = time.monotonic()
    assert requests.post(url, b"wild", timeout=60).status_code == 503
    assert eventually(lambda: not Path(f"/proc/{pid}").exists(), 10)
    assert time.monotonic() - began < 5
