"""Studies made by hand for tests: every field has a default that a healthy run would have.

``study`` plays arms of known throughput through blocks; ``run``, ``result`` and ``arm`` make single records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ts_mps.bench.histogram import Collector
from ts_mps.bench.records import Arm, GpuSample, Histogram, Load, LoadResult, Run, Study

GPU = "GPU-11111111-2222-3333-4444-555555555555"
MACHINE: dict[str, Any] = {
    "host": "bench-1",
    "cpu": "Example CPU",
    "cores": 16,
    "division": {"server": list(range(12)), "generator": list(range(12, 16))},
    "memory": 128 << 30,
    "kernel": "6.8.0",
    "container": "",
    "driver": "580.159.04",
    "cuda": "13.0",
    "gpus": [{"index": 0, "uuid": GPU, "name": "NVIDIA H200", "memory": 143771 << 20, "sm_clock_max": 1980}],
    "versions": {"ts_mps": "0.1.0", "python": "3.12.3", "torch": "2.11.0", "torchserve": "0.12.0", "locust": "2.47.0"},
    "commit": "0123abc",
    "environment": [],
}


def arm(workers: int = 1, batch_size: int = 8, mps: bool = False, name: str = "", **fields: Any) -> Arm:
    """An arm, named after what it is unless ``name`` says otherwise."""
    if not name:
        parts = [f"{workers} worker{'s' if workers > 1 else ''} x {batch_size}", f"MPS {'on' if mps else 'off'}"]
        if percentage := fields.get("thread_percentage"):
            parts.append(f"{percentage:g} %")
        parts += [value for value in (fields.get("engine"), fields.get("group")) if value]
        parts += ["no-op"] if fields.get("noop") else []
        name = ", ".join(parts)
    return Arm(name=name, workers=workers, batch_size=batch_size, mps=mps, **fields)


def histogram(milliseconds: Sequence[float]) -> Histogram:
    """These latencies, counted."""
    collector = Collector()
    for value in milliseconds:
        collector.add(value / 1000)
    return collector.histogram()


def latencies(count: int, median_ms: float, seed: int = 0) -> Histogram:
    """``count`` log-normal latencies with a tail like a server's: p99 is about twice the median."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median_ms), 0.3, min(count, 2000))
    return histogram(np.resize(drawn, count).tolist()) if count else Histogram()


def result(
    throughput: float = 1000.0,
    median_ms: float = 20.0,
    kind: str = "closed",
    rate: float = 0.0,
    seconds: float = 10.0,
    errors: Mapping[str, int] | None = None,
    seed: int = 0,
    **fields: Any,
) -> LoadResult:
    """What a generator saw that got ``throughput`` answers per second."""
    answered = round(throughput * seconds)
    errors = dict(errors or {})
    values: dict[str, Any] = {
        "load": Load(kind, 0 if kind != "closed" else 64, rate, seconds, 2.0, seed),
        "sent": answered + sum(errors.values()),
        "answered": answered,
        "errors": errors,
        "first_errors": {name: f"first {name}" for name in errors},
        "histogram": latencies(answered, median_ms, seed),
        "per_second": tuple([round(throughput)] * int(seconds)),
        "generator_cores": 1.0,
        "generator_limit": 4,
    }
    return LoadResult(**{**values, **fields})


def samples(utilisation: int | None = 70, throttled: Sequence[str] = (), count: int = 20) -> tuple[GpuSample, ...]:
    """Two samples a second of one GPU."""
    return tuple(
        GpuSample(0.5 * turn, GPU, utilisation, 8 << 30, 1980, 55, 400.0, tuple(throttled)) for turn in range(count)
    )


def run(arm: Arm | str, block: int = 0, measured: LoadResult | None = None, failure: str = "", **fields: Any) -> Run:
    """One run that counts, or one that failed with this sentence (and, unless given, without a result)."""
    name = arm if isinstance(arm, str) else arm.name
    values: dict[str, Any] = {
        "position": 0,
        "started": f"2025-01-01T00:{block % 60:02d}:00+00:00",
        "ready_seconds": 5.0,
        "clients": arm.workers if isinstance(arm, Arm) and arm.mps else 0,
        "frontend_cores": 2.0,
        "worker_cores": 4.0,
        "server_limit": 12,
        "samples": () if failure else samples(),
        "failure": failure,
    }
    seen = measured if measured is not None or failure else result(seed=block)
    return Run(block=block, arm=name, result=seen, **{**values, **fields})


def study(
    throughputs: Sequence[tuple[Arm, float]] = (),
    blocks: int = 8,
    noise: float = 0.01,
    seed: int = 1,
    runs: Sequence[Run] = (),
    **fields: Any,
) -> Study:
    """A study whose arms have these true throughputs (requests per second), or exactly these ``runs``.

    Args:
        throughputs: (arm, throughput), the baseline first; by default one worker, four, and four with MPS on.
        blocks: Each has one run of every arm, in an order drawn from the seed.
        noise: Standard deviation of a run's throughput, as a part of it.
        seed: Of noise and orders.
        runs: Added after those that are drawn.
        **fields: Of :class:`Study`, in place of the defaults.
    """
    pairs = list(throughputs)
    if not pairs and not runs:
        pairs = [(arm(1), 1000.0), (arm(4), 2000.0), (arm(4, mps=True), 3000.0)]
    random = np.random.default_rng(seed)
    drawn: list[Run] = []
    for block in range(blocks):
        for position, index in enumerate(random.permutation(len(pairs))):
            one, truth = pairs[index]
            throughput = truth * float(np.exp(random.normal(0, noise)))
            seen = result(throughput, 64_000 / throughput, seed=block)
            drawn.append(run(one, block, seen, position=position))
    values: dict[str, Any] = {
        "title": "Text classifier",
        "kind": "compare",
        "workload": {"name": "text", "model": "bert-base", "payload_bytes": 512},
        "arms": tuple(one for one, _ in pairs),
        "blocks": blocks,
        "seed": seed,
        "machine": MACHINE,
        "settings": {"blocks": blocks, "seconds": 10.0},
        "started": "2025-01-01T00:00:00+00:00",
    }
    return Study(runs=tuple([*drawn, *runs]), **{**values, **fields})
