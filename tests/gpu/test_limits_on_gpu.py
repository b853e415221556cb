"""Limits on a real GPU: what a plan gives is what CUDA shows, arithmetic under them is checked, memory is bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Serving
from support import mps_processes

from ts_mps.gpu.inventory import Gpu, read_inventory
from ts_mps.mps.daemon import Daemon, acquire
from ts_mps.paths import Home
from ts_mps.plan.share import granted_sms
from ts_mps.torchserve.client import ApiError
from ts_mps.worker_records import Share

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

#: Says what it got; allocates as many MiB as the body says.
LIMITED = """
import json, os, torch

class Limited:
    def initialize(self, context):
        self.device = torch.device(f"cuda:{context.system_properties['gpu_id']}")
        self.held = torch.ones(1, device=self.device)

    def handle(self, data, context):
        block = torch.ones(int(bytes(data[0]["body"])) << 20, dtype=torch.uint8, device=self.device)
        names = [name for name in os.environ if name.startswith("CUDA_MPS_")]
        seen = {"pid": os.getpid(), "sms": torch.cuda.get_device_properties(self.device).multi_processor_count,
                "last": int(block[-1]), "cores": sorted(os.sched_getaffinity(0)),
                "env": {name: os.environ[name] for name in names}}
        return [json.dumps(seen)] * len(data)
"""

#: Checks its arithmetic as a limited worker does, and prints the seconds; a wrong element can be asked for.
CHECK = """
import json, sys, torch
from ts_mps.errors import MpsError
from ts_mps.plan.model import PlannedGpu
from ts_mps.torchserve.numerics import check

def spoilt(a, weight):
    result = torch.nn.functional.linear(a, weight)
    if sys.argv[3] == "spoil" and a.dtype == torch.bfloat16 and len(a) == 2048:
        result[2047, 2047] += 1
    return result

try:
    seconds = check(PlannedGpu(0, sys.argv[1], "GPU"), float(sys.argv[2]), multiply=spoilt)
    left = torch.cuda.memory_reserved()
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    print(json.dumps({"seconds": seconds, "left": left, "sms": sms}))
except MpsError as error:
    print(json.dumps({"refused": error.what}))
"""


@pytest.fixture
def gpu() -> Gpu:
    return read_inventory().gpus[0]


@pytest.fixture
def limited(serving: Serving, gpu: Gpu) -> Iterator[Serving]:
    """Serving on one GPU; a stop leaves nothing."""
    serving.environ["CUDA_VISIBLE_DEVICES"] = gpu.uuid
    yield serving
    stopped = serving.ts_mps("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert serving.left() == [] and mps_processes(serving.folder) == []


def ask(serving: Serving, model: str, mebibytes: int = 1) -> dict:
    answer = json.loads(serving.api().predict(model, str(mebibytes).encode()))
    assert answer["last"] == 1
    return answer


def test_three_workers_get_what_their_plan_says(limited: Serving, gpu: Gpu, capsys) -> None:
    shares = {10: (2, "normal"), 25: (3, "below-normal"), 50: (4, "normal")}
    models = [limited.archive(f"m{percentage}", LIMITED) for percentage in shares]
    settings = "".join(
        f'[models.m{percentage}]\nthread_percentage = {percentage}\nmemory_limit = "{gib} GiB"\npriority = "{word}"\n'
        for percentage, (gib, word) in shares.items()
    )
    limited.start_planned(settings, *models)
    status = limited.status()
    assert status.as_planned, status.problems
    assert all(worker.attached for worker in status.workers)
    workers = {worker.model: worker for worker in status.workers}
    for percentage, (gib, word) in shares.items():
        worker = workers[f"m{percentage}"]
        sms = granted_sms(gpu.sms, percentage)
        seen = ask(limited, worker.model)
        assert seen["pid"] == worker.pid and worker.got is not None and worker.got.checked is not None
        assert (worker.expected_sms, worker.got.sms, seen["sms"]) == (sms, sms, sms)
        low = int(word == "below-normal")
        expected = Share(sms, percentage, gib * 2**30, low, tuple(seen["cores"]), worker.got.checked)
        assert worker.got == expected
        assert seen["env"]["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == str(percentage)
        assert seen["env"]["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == f"0={gib * 1024}M"
        assert seen["env"]["CUDA_MPS_CLIENT_PRIORITY"] == str(low)
    shown = limited.ts_mps("status").stdout
    assert all(f"{percentage} % checked" in shown for percentage in shares)
    with capsys.disabled():
        print("\n" + "\n".join(f"{w.got.thread_percentage:g} %: {w.got}" for w in workers.values() if w.got))


def test_memory_over_the_limit_fails_the_request_and_not_the_worker(limited: Serving, gpu: Gpu) -> None:
    limited.archive("m", LIMITED)
    limited.start_planned('[models.m]\nmemory_limit = "2 GiB"\n', "m.mar")
    pid = ask(limited, "m", 512)["pid"]
    for _ in range(3):
        with pytest.raises(ApiError) as refused:
            ask(limited, "m", 4096)
        assert refused.value.status == 507
        assert ask(limited, "m", 512)["pid"] == pid
    status = limited.status()
    assert status.as_planned and [worker.pid for worker in status.workers] == [pid]
    got = status.workers[0].got
    assert got is not None and got.memory_limit == 2 * 2**30
    assert got.checked is None and got.sms == gpu.sms, "no percentage, so no check and all SMs"


@pytest.fixture
def daemon(short_dir: Path, gpu: Gpu) -> Iterator[Daemon]:
    lease = acquire(gpu, Home(short_dir).gpu(gpu.uuid), "test", environ=os.environ)
    yield lease.daemon
    lease.release()


def run_check(daemon: Daemon, percentage: float, fault: str = "") -> dict:
    environ = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": daemon.uuid,
        "CUDA_MPS_PIPE_DIRECTORY": daemon.pipe,
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": f"{percentage:g}",
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-c", CHECK, daemon.uuid, str(percentage), fault]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_wrong_arithmetic_is_refused_with_figures_or_right(daemon: Daemon, gpu: Gpu, capsys) -> None:
    """75 % of an H200 (98 of 132 SMs) was seen to compute wrong bf16 products under driver 580 and torch 2.11."""
    run = run_check(daemon, 75)
    if "refused" in run:
        assert "computes wrong results" in run["refused"]
        assert f"({granted_sms(gpu.sms, 75)} SMs)" in run["refused"]
    else:
        assert run["sms"] == granted_sms(gpu.sms, 75)
    with capsys.disabled():
        print(f"\n75 %: {run}")


@pytest.mark.parametrize("percentage", [10, 25, 50, 100])
def test_arithmetic_under_a_percentage_is_right_within_a_second(
    daemon: Daemon, gpu: Gpu, percentage: int, capsys
) -> None:
    run = run_check(daemon, percentage)
    assert run["sms"] == granted_sms(gpu.sms, percentage)
    assert run["seconds"] < 1.0
    assert run["left"] <= 128 * 2**20, "more than a workspace of cuBLAS"
    with capsys.disabled():
        print(f"\n{percentage} %: {run['sms']} SMs, checked in {run['seconds']:.2f} s, {run['left'] >> 20} MiB stay")


def test_one_wrong_element_of_a_large_product_is_found(daemon: Daemon, gpu: Gpu) -> None:
    run = run_check(daemon, 50, "spoil")
    assert "bfloat16 matrix product of 2048x2048x2048 is wrong in 1 of 4,194,304 elements" in run["refused"]
    assert f"({granted_sms(gpu.sms, 50)} SMs)" in run["refused"]
