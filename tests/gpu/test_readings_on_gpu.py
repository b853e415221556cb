"""NVML's readings on a real GPU: an idle one, and one that works without pause."""

from __future__ import annotations

import subprocess
import sys

import pynvml
import pytest

from ts_mps.gpu.inventory import read_inventory
from ts_mps.gpu.readings import process_memory, sm_activity

pytestmark = pytest.mark.gpu

BUSY = """
import torch
a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
a @ a  # cuBLAS loads its kernels and takes its workspace, which is no work yet
torch.cuda.synchronize()
print("ready", flush=True)
while True:
    a @ a
    torch.cuda.synchronize()
"""


@pytest.fixture
def uuid():
    gpu = read_inventory().gpus[0]
    pynvml.nvmlInit()
    try:
        device = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        if gpu.compute_capability < (9, 0) or not pynvml.nvmlGpmQueryDeviceSupport(device).isSupportedDevice:
            pytest.skip(f"{gpu.name} gives no SM activity")
    finally:
        pynvml.nvmlShutdown()
    return gpu.uuid


def test_the_activity_of_the_sms_follows_the_work(uuid):
    idle = sm_activity([uuid], 0.2).get(uuid)
    if idle is None:
        pytest.skip("NVML gives the SM activity of this GPU not to this user or with this driver")
    busy = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    try:
        assert busy.stdout.readline() == "ready\n"
        assert sm_activity([uuid], 0.5)[uuid] > max(0.5, idle + 0.3)
        memory = process_memory([uuid])
        # In a container NVML's pids are the host's.
        assert memory == {} or busy.pid not in memory or memory[busy.pid] > 2**25
    finally:
        busy.kill()
        busy.wait()
