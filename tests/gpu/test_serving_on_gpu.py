"""The whole life with real workers, real daemons and real GPUs. No test here changes a GPU's settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pynvml
import pytest
from serving import Serving
from support import eventually, mps_processes

from ts_mps.gpu.inventory import read_inventory
from ts_mps.mps.control import Control
from ts_mps.torchserve.failures import failures

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

#: A handler as users write it: it takes the GPU that TorchServe names and knows nothing of MPS.
MATRIX = """
import json, os, torch

class Matrix:
    def initialize(self, context):
        self.device = torch.device(f"cuda:{context.system_properties['gpu_id']}")
        self.weight = torch.eye(64, device=self.device)

    def handle(self, data, context):
        total = float((self.weight @ self.weight).sum())
        seen = {"total": total, "pid": os.getpid(), "visible": torch.cuda.device_count(),
                "uuid": str(torch.cuda.get_device_properties(0).uuid), "env": os.environ["CUDA_VISIBLE_DEVICES"]}
        return [json.dumps(seen)] * len(data)
"""

#: Touches CUDA in its first request only.
LAZY = """
class Lazy:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        import torch
        return [str(float(torch.ones(3, device="cuda").sum()))] * len(data)
"""

#: Keeps the GPU busy for as many seconds as the body says.
BUSY = """
import time, torch

class Busy:
    def initialize(self, context):
        self.x = torch.randn(4096, 4096, device="cuda")

    def handle(self, data, context):
        end = time.monotonic() + float(bytes(data[0]["body"]))
        while time.monotonic() < end:
            self.x @ self.x
            torch.cuda.synchronize()
        return [b"done"] * len(data)
"""

#: Leaves its GPU's MPS behind, as a handler must not.
STRAY = """
import os

class Stray:
    def initialize(self, context):
        os.environ["CUDA_MPS_PIPE_DIRECTORY"] = "/nonexistent"
        import torch
        torch.zeros(1, device="cuda")

    def handle(self, data, context):
        return data
"""


def memory_used() -> list[int]:
    """MiB in use on each GPU."""
    pynvml.nvmlInit()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetMemoryInfo(handle).used >> 20 for handle in handles]
    finally:
        pynvml.nvmlShutdown()


@pytest.fixture
def gpu_serving(serving: Serving):
    """Serving, with the promise that a stop leaves no process, socket, daemon or GPU memory."""
    before = memory_used()
    yield serving
    stopped = serving.ts_mps("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert serving.left() == []
    assert mps_processes(serving.folder) == []
    assert eventually(lambda: all(now <= then + 8 for now, then in zip(memory_used(), before, strict=True)), 20)


def clients(serving: Serving) -> set[int]:
    return {pid for gpu in serving.state().gpus for pid in Control(Path(gpu.pipe)).all_clients()}


def test_demo(serving, capsys):
    done = serving.ts_mps("demo", "--json", "--workers", "4")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"]["mps"] == "on"
    assert [worker["attached"] for worker in result["status"]["workers"]] == [True] * 4
    assert result["load"]["accuracy"] >= 0.95
    assert serving.left() == []
    with capsys.disabled():
        load = result["load"]
        print(f"\ndemo, 4 workers, MPS on: {load['accuracy']:.1%}, {load['requests_per_second']:.0f} requests/s")


def test_every_worker_is_a_proven_client_of_its_gpus_daemon(gpu_serving):
    gpu_serving.archive("matrix", MATRIX, workers=12)
    gpu_serving.archive("lazy", LAZY, workers=1)
    started = gpu_serving.start("--models", "matrix.mar", "lazy.mar")
    assert started.returncode == 0, started.stderr
    status = gpu_serving.status()
    assert status.as_planned, status.problems
    assert len(status.workers) == 13 and all(worker.attached for worker in status.workers)
    assert {worker.pid for worker in status.workers} == clients(gpu_serving)
    seen = json.loads(gpu_serving.api().predict("matrix", b""))
    assert seen["total"] == 64.0 and seen["visible"] == 1
    assert seen["env"] in {gpu.uuid for gpu in status.gpus}
    assert seen["env"] == f"GPU-{seen['uuid']}"
    assert gpu_serving.api().predict("lazy", b"") == b"3.0"


def test_a_handler_that_leaves_mps_is_refused(gpu_serving):
    gpu_serving.archive("stray", STRAY)
    failed = gpu_serving.start("--models", "stray.mar")
    assert failed.returncode == 6
    assert "is not in the client list" in failed.stderr


def test_the_cap_holds_whoever_asks(gpu_serving, capsys):
    inventory = read_inventory()
    uuid = inventory.gpus[0].uuid
    one = {"CUDA_VISIBLE_DEVICES": uuid}
    gpu_serving.archive("matrix", MATRIX, workers=48)
    refused = gpu_serving.start("--models", "matrix.mar", "--workers", "49", **one)
    assert refused.returncode == 4, refused.stderr
    assert "49 workers" in refused.stderr and "48 clients" in refused.stderr
    kept = gpu_serving.start("--models", "matrix.mar", **one)
    assert kept.returncode == 4 and "kept free (--reserve)" in kept.stderr, kept.stderr

    began = time.monotonic()
    started = gpu_serving.start("--models", "matrix.mar", "--reserve", "0", **one)
    seconds = time.monotonic() - began
    assert started.returncode == 0, started.stderr
    assert len(clients(gpu_serving)) == 48

    gpu_serving.api().scale("matrix", "1.0", 50)
    assert eventually(lambda: bool(failures(gpu_serving.paths())), 60)
    what = failures(gpu_serving.paths())[0].what
    assert "48 of 48 MPS clients" in what and "48 x matrix of instance default" in what and uuid[:12] in what
    assert len(clients(gpu_serving)) == 48
    assert json.loads(gpu_serving.api().predict("matrix", b""))["total"] == 64.0
    gpu_serving.api().scale("matrix", "1.0", 48)
    assert eventually(lambda: gpu_serving.status().as_planned, 60), gpu_serving.status().problems
    with capsys.disabled():
        print(f"\n48 workers on one GPU, all attached after {seconds:.1f} s; refused: {what}")


def test_a_killed_guardian_leaves_nothing_after_stop(gpu_serving):
    gpu_serving.archive("matrix", MATRIX, workers=2)
    assert gpu_serving.start("--models", "matrix.mar").returncode == 0
    os.kill(gpu_serving.state().guardian.pid, signal.SIGKILL)
    status = gpu_serving.ts_mps("status")
    assert status.returncode == 7 and "guardian is gone" in status.stdout


def test_everything_killed_and_started_again(gpu_serving):
    gpu_serving.archive("matrix", MATRIX, workers=2)
    assert gpu_serving.start("--models", "matrix.mar").returncode == 0
    gpu_serving.kill_everything()
    for process in mps_processes(gpu_serving.folder):
        process.kill()
    assert eventually(lambda: gpu_serving.processes() == [], 10)
    again = gpu_serving.start("--models", "matrix.mar")
    assert again.returncode == 0, again.stderr
    assert gpu_serving.status().as_planned


def test_a_busy_client_is_terminated_before_it_is_killed(gpu_serving):
    gpu_serving.archive("busy", BUSY, workers=2)
    assert gpu_serving.start("--models", "busy.mar").returncode == 0
    pipe = gpu_serving.state().gpus[0].pipe
    log = gpu_serving.state().gpus[0].log
    victims = {worker.pid for worker in gpu_serving.workers()}
    client = threading.Thread(target=lambda: _swallow(lambda: gpu_serving.api().predict("busy", b"60")))
    client.start()
    time.sleep(1.5)
    stopped = gpu_serving.ts_mps("stop", "--drain-timeout", "1")
    assert stopped.returncode == 0, stopped.stderr
    client.join(20)
    text = (Path(log) / "control.log").read_text()
    terminated = [line for line in text.splitlines() if "Cmd:terminate_client" in line]
    assert len(terminated) == 1 and int(terminated[0].split()[-1]) in victims, "only the busy one, and once"
    assert not Path(pipe).exists()


def _swallow(call):
    try:
        call()
    except Exception:
        return


def test_two_instances_share_one_daemon(gpu_serving):
    gpu_serving.archive("matrix", MATRIX, workers=1)
    assert gpu_serving.start("--models", "matrix.mar").returncode == 0
    gpu_serving.config = gpu_serving.write_config("second.properties")
    second = gpu_serving.start("--models", "matrix.mar", "--name", "second", "--disable-token-auth")
    assert second.returncode == 0, second.stderr
    first, other = (gpu_serving.state(name).gpus[0] for name in ("default", "second"))
    assert first.daemon == other.daemon
    assert len(clients(gpu_serving)) == 2
    stopped = gpu_serving.ts_mps("stop", "--name", "second")
    assert stopped.returncode == 0, stopped.stderr
    assert first.daemon.alive() and gpu_serving.status().as_planned


def test_a_daemon_of_somebody_else_is_adopted_and_survives(serving, short_dir):
    pipe, log = short_dir / "theirs", short_dir / "theirs-log"
    pipe.mkdir()
    log.mkdir()
    theirs = {"CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_MPS_LOG_DIRECTORY": str(log)}
    subprocess.run(["nvidia-cuda-mps-control", "-d"], env={**os.environ, **theirs}, check=True)
    serving.archive("matrix", MATRIX, workers=2)
    started = serving.start("--models", "matrix.mar", **theirs)
    assert started.returncode == 0, started.stderr
    assert "never stopped" in started.stdout
    assert len(Control(pipe).all_clients()) == 2
    assert serving.ts_mps("stop").returncode == 0
    assert Control(pipe).all_clients() == ()
    assert Control(pipe).answers()
    assert [line for line in serving.left() if str(pipe) not in line] == []
    Control(pipe).quit(5)


@pytest.mark.skipif(len(read_inventory().gpus) < 2, reason="needs two GPUs")
class TestTwoGpus:
    def test_one_daemon_each_and_each_worker_sees_its_own_gpu(self, gpu_serving):
        uuids = [gpu.uuid for gpu in read_inventory().gpus[:2]]
        gpu_serving.archive("matrix", MATRIX, workers=6)
        started = gpu_serving.start("--models", "matrix.mar", CUDA_VISIBLE_DEVICES=",".join(uuids))
        assert started.returncode == 0, started.stderr
        state = gpu_serving.state()
        assert [gpu.uuid for gpu in state.gpus] == uuids
        assert len({gpu.daemon.pid for gpu in state.gpus}) == 2
        for gpu in state.gpus:
            mine = {worker.pid for worker in gpu_serving.workers() if worker.slot.gpu == gpu.uuid}
            assert len(mine) == 3 and set(Control(Path(gpu.pipe)).all_clients()) == mine
        place = {worker.pid: worker.slot.gpu for worker in gpu_serving.workers()}
        for _ in range(60):
            seen = json.loads(gpu_serving.api().predict("matrix", b""))
            assert seen["visible"] == 1 and place[seen["pid"]] == f"GPU-{seen['uuid']}"

    def test_only_the_visible_gpu_is_touched(self, gpu_serving):
        gpu_serving.archive("matrix", MATRIX, workers=2)
        assert gpu_serving.start("--models", "matrix.mar", CUDA_VISIBLE_DEVICES="1").returncode == 0
        (gpu,) = gpu_serving.state().gpus
        assert gpu.uuid == read_inventory().gpus[1].uuid
        assert json.loads(gpu_serving.api().predict("matrix", b""))["uuid"] == gpu.uuid.removeprefix("GPU-")

    def test_device_ids_place_the_workers(self, gpu_serving):
        gpu_serving.archive("matrix", MATRIX, workers=3, deviceIds=[1, 1, 0])
        assert gpu_serving.start("--models", "matrix.mar").returncode == 0
        uuids = [gpu.uuid for gpu in read_inventory().gpus]
        assert sorted(worker.slot.gpu for worker in gpu_serving.workers()) == sorted([uuids[1], uuids[1], uuids[0]])
