"""The daemon's life with the real control program, a real server and real CUDA clients."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import eventually, gone, mps_processes

from ts_mps.gpu.inventory import Gpu, read_inventory
from ts_mps.mps.control import Control
from ts_mps.mps.daemon import Daemon, acquire, adopt, daemon_alive, terminate_and_kill
from ts_mps.paths import GpuPaths, Home

pytestmark = pytest.mark.gpu

Client = Callable[[Daemon], subprocess.Popen[str]]

BUSY = """
import torch
x = torch.randn(2048, 2048, device="cuda")
torch.cuda.synchronize()
print("ready", flush=True)
while True:
    x @ x
    torch.cuda.synchronize()
"""


@pytest.fixture
def gpu() -> Gpu:
    return read_inventory().gpus[0]


@pytest.fixture
def paths(short_dir: Path, gpu: Gpu) -> GpuPaths:
    return Home(short_dir).gpu(gpu.uuid)


@pytest.fixture
def client() -> Iterator[Client]:
    started: list[subprocess.Popen[str]] = []

    def start(daemon: Daemon) -> subprocess.Popen[str]:
        environ = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": daemon.pipe, "CUDA_VISIBLE_DEVICES": daemon.uuid}
        one = subprocess.Popen([sys.executable, "-c", BUSY], env=environ, stdout=subprocess.PIPE, text=True)
        started.append(one)
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
        return one

    yield start
    for one in started:
        one.kill()
        one.communicate()


def test_inventory_of_this_machine(gpu: Gpu):
    assert len(gpu.uuid) == 40 and gpu.compute_capability >= (3, 5)
    assert 0 < gpu.memory_free <= gpu.memory_total
    assert set(gpu.cores) <= os.sched_getaffinity(0)


def test_from_start_to_nothing_left(gpu: Gpu, paths: GpuPaths, short_dir: Path, client: Client):
    lease = acquire(gpu, paths, "one", environ=os.environ)
    assert lease.daemon.cap >= 16
    workers = [client(lease.daemon) for _ in range(3)]
    control = Control(paths.pipe)
    assert set(control.all_clients()) == {worker.pid for worker in workers}
    assert adopt(paths.pipe, gpu, environ=os.environ).daemon.pid == lease.daemon.pid

    terminate_and_kill(Path(lease.daemon.pipe), [workers[0].pid])
    assert workers[0].wait() == -signal.SIGKILL
    assert eventually(lambda: set(control.all_clients()) == {worker.pid for worker in workers[1:]})
    assert all(worker.poll() is None for worker in workers[1:])

    terminate_and_kill(Path(lease.daemon.pipe), [worker.pid for worker in workers])
    assert lease.release().endswith("was stopped.")
    assert mps_processes(short_dir) == [] and not paths.pipe.exists()


def test_killed_daemon_is_brought_back(gpu: Gpu, paths: GpuPaths, client: Client):
    lease = acquire(gpu, paths, "one", environ=os.environ)
    victim = client(lease.daemon)
    before = lease.daemon
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    assert eventually(lambda: not daemon_alive(before))
    terminate_and_kill(Path(before.pipe), [victim.pid])
    after = lease.ensure()
    assert daemon_alive(after) and gone(before.pid)
    worker = client(after)
    assert Control(paths.pipe).all_clients() == (worker.pid,)
    terminate_and_kill(Path(after.pipe), [worker.pid])
    lease.release()
