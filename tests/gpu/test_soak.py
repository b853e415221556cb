"""Many minutes of mixed load with one bad request in a hundred: nothing lost, nothing grown, nobody restarted.

TS_MPS_SOAK_SECONDS (600) or TS_MPS_SOAK_REQUESTS (100,000) end it, whichever comes first. TS_MPS_SOAK_CPU=1
runs it without a GPU.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import mixed
import psutil
import pytest
from mixed import MODELS, Case, Client, Traffic, comparable, differ, twins
from serving import Serving

SECONDS = float(os.environ.get("TS_MPS_SOAK_SECONDS", "600"))
REQUESTS = int(os.environ.get("TS_MPS_SOAK_REQUESTS", "100000"))
ON_CPU = os.environ.get("TS_MPS_SOAK_CPU") == "1"

pytestmark = [pytest.mark.timeout(SECONDS + 900), *([] if ON_CPU else [pytest.mark.gpu])]

SEED = 31
WORKERS = {"text_classifier": 2, "ranker": 1, "image_classifier": 1, "text_generator": 1}
#: How often each model is asked: a text takes a hundredth of what a generated answer takes.
SHARES = {"text_classifier": 12, "ranker": 5, "image_classifier": 2, "text_generator": 1}
#: Different requests for each model, good and bad.
GOOD, BAD = 96, 48
#: Requests that are planned together: one of them is bad.
BLOCK = 100
#: Of the good answers one in so many is compared as a whole.
SAMPLE = 20
WARM_UP = 20 * BLOCK
#: Scores on the GPU against those of float32 on the CPU: the text classifier computes in fp16, the others in fp32.
TOLERANCE = {"text_classifier": 1e-2, "ranker": 1e-3, "image_classifier": 1e-3, "text_generator": 1e-3}

MIB = 2**20


@dataclass(frozen=True)
class Load:
    """What is asked, by how many.

    Args:
        address: Host and port.
        good: Good requests by model, as the bytes on the wire.
        bad: Bad ones by model.
        processes: Processes, as one interpreter is too slow to keep several workers busy.
        threads: Threads of each, with a connection each.
    """

    address: tuple[str, int]
    good: Mapping[str, Sequence[tuple[Case, bytes]]]
    bad: Mapping[str, Sequence[tuple[Case, bytes]]]
    processes: int
    threads: int

    def run(self, blocks: int, until: float, seed: int) -> Counter[str]:
        """Ask so many blocks, or as many as begin before ``until`` (time.monotonic()); outcomes, counted."""
        # Forked, so that the requests need not be copied; the children use neither torch nor CUDA.
        with multiprocessing.get_context("fork").Pool(self.processes) as pool:
            work = [(self, range(first, blocks, self.processes), until, seed) for first in range(self.processes)]
            return sum(pool.starmap(_drive, work), Counter())


def _drive(load: Load, blocks: range, until: float, seed: int) -> Counter[str]:
    with ThreadPoolExecutor(load.threads) as pool:
        shares = [blocks[first :: load.threads] for first in range(load.threads)]
        return sum(pool.map(lambda share: _ask(load, share, until, seed), shares), Counter())


def _ask(load: Load, blocks: Sequence[int], until: float, seed: int) -> Counter[str]:
    """One connection's closed loop."""
    seen: Counter[str] = Counter()
    client = Client(load.address, timeout_s=120)
    for block in blocks:
        if time.monotonic() >= until:
            break
        dice = random.Random(seed * 1_000_003 + block)
        models = dice.choices(MODELS, [SHARES[model] for model in MODELS], k=BLOCK)
        bad = dice.randrange(BLOCK)
        for turn, model in enumerate(models):
            case, request = dice.choice((load.bad if turn == bad else load.good)[model])
            try:
                status, body = client.ask(request)
            except (OSError, ValueError) as error:
                seen[f"{model}: no answer ({type(error).__name__}: {error})"] += 1
                continue
            seen[_verdict(case, status, body, whole=turn % SAMPLE == 0)] += 1
    client.close()
    return seen


def _verdict(case: Case, status: int, body: bytes, *, whole: bool) -> str:
    """``good``, ``bad``, or what is wrong with an answer."""
    if status != case.status:
        return f"{case.model}: {status} in place of {case.status}: {body[:200]!r}"
    if case.answer is None:
        return "bad"
    if not body.startswith(case.begins):
        return f"{case.model}: an answer of another kind: {body[:200]!r}"
    if whole:
        import orjson

        if differ(comparable(orjson.loads(body)), case.answer, TOLERANCE[case.model]):
            return f"{case.model}: another answer: {body[:200]!r}"
        return "good, compared"
    return "good"


class Memory:
    """The device's memory and each worker's, in bytes."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.device = _device_memory()
        self.workers = {pid: psutil.Process(pid).memory_info().rss for pid in pids}

    def __str__(self) -> str:
        rss = "+".join(f"{used / MIB:.0f}" for used in self.workers.values())
        return f"GPU {self.device / MIB:.0f} MiB, workers {rss} MiB"


def _device_memory() -> int:
    if ON_CPU:
        return 0
    import pynvml

    pynvml.nvmlInit()
    try:
        return sum(
            pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index)).used
            for index in range(pynvml.nvmlDeviceGetCount())
        )
    finally:
        pynvml.nvmlShutdown()


@pytest.fixture
def load(serving: Serving) -> Iterator[Load]:
    half = {} if ON_CPU else {"batching__dtype": "fp16"}
    folders: dict[str, Path] = {model: serving.folder / "models" / model for model in MODELS}
    for model in MODELS:
        mixed.build(model, serving.store, folders[model], **(half if model == "text_classifier" else {}))
    traffic = Traffic({model: mixed.serve(model, folders[model]) for model in MODELS}, SEED)
    good = {model: [traffic.good(model) for _ in range(GOOD)] for model in MODELS}
    for model, cases in good.items():
        assert not twins(cases, 2 * TOLERANCE[model]), "they could be swapped unnoticed"
    bad = {model: [traffic.bad(model) for _ in range(BAD)] for model in MODELS}
    models = [f"{model}.mar" for model in MODELS]
    workers = [f"{model}={count}" for model, count in WORKERS.items()]
    mps = "off" if ON_CPU else "on"
    started = serving.start("--mps", mps, "--disable-token-auth", "--models", *models, "--workers", *workers)
    assert started.returncode == 0, started.stdout + started.stderr
    parts = urlsplit(dict(line.split("=", 1) for line in serving.config.read_text().splitlines())["inference_address"])

    def wired(cases: Mapping[str, Sequence[Case]]) -> dict[str, list[tuple[Case, bytes]]]:
        return {model: [(case, case.ask.raw(parts.netloc)) for case in some] for model, some in cases.items()}

    cores = len(os.sched_getaffinity(0))
    yield Load(
        (str(parts.hostname), int(parts.port or 0)),
        wired(good),
        wired(bad),
        processes=max(1, min(8, cores // 2)),
        threads=8,
    )
    stopped = serving.ts_mps("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert serving.left() == []


def test_soak(serving: Serving, load: Load) -> None:
    status = serving.status()
    assert status.as_planned, status.problems
    warm = load.run(WARM_UP // BLOCK, math.inf, seed=0)
    assert set(warm) == {"good", "good, compared", "bad"}, warm
    pids = sorted(worker.pid for worker in serving.workers())
    assert len(pids) == sum(WORKERS.values())
    before = Memory(pids)

    began = time.monotonic()
    seen = load.run(REQUESTS // BLOCK, began + SECONDS, seed=1)
    seconds = time.monotonic() - began

    asked, errors = seen.total(), seen.total() - seen["good"] - seen["good, compared"]
    after = Memory([pid for pid in pids if psutil.pid_exists(pid)])
    print(
        f"\nsoak: {asked} requests in {seconds:.0f} s ({asked / seconds:.0f}/s), {errors} errors, "
        f"{seen['good, compared']} answers compared; before: {before}; after: {after}"
    )
    assert set(seen) == {"good", "good, compared", "bad"}, seen.most_common(10)
    assert errors == seen["bad"] == asked // BLOCK and asked % BLOCK == 0
    assert sorted(worker.pid for worker in serving.workers()) == pids
    assert serving.status().as_planned, serving.status().problems
    assert after.device <= before.device * 1.02 + 64 * MIB
    for pid in pids:
        assert after.workers[pid] <= before.workers[pid] * 1.05 + 100 * MIB, pid
