"""A worker that lost its device, on the real TorchServe: its batch is answered, and another worker takes its place.

The loss is injected here; tests/gpu has the same with a real device-side assert.
"""

from __future__ import annotations

import requests
from serving import Serving
from support import eventually

from ts_mps.guardian.state import load_state

LOSES = """
import torch
import ts_mps.batching.handler as library
from ts_mps.batching import BatchHandler, Input, Instances

lost = []
library.survives = lambda device: not lost

class Table(BatchHandler):
    inputs = {"x": Input("int64", (1,))}

    def load(self, folder):
        torch.manual_seed(0)
        return torch.nn.Embedding(10, 2)

    def decode(self, request):
        return Instances({"x": request.array("int64", (1,))})

    def run(self, batch):
        if lost or (batch["x"] == 99).any():
            lost.append(1)
            raise RuntimeError("CUDA error: device-side assert triggered")
        return self.model(batch["x"][:, 0])

    def encode(self, result, request):
        return result["output"]
"""


def test_the_batch_gets_503_and_a_new_worker_serves(serving: Serving) -> None:
    serving.archive("table", LOSES)
    started = serving.start("--models", "table.mar", "--disable-token-auth")
    assert started.returncode == 0, started.stderr
    where = load_state(serving.paths()).endpoints.inference
    url = f"http://{where.host}:{where.port}/predictions/table"
    wanted = requests.post(url, json=[[3]], timeout=30).json()
    (pid,) = [worker.pid for worker in serving.workers()]
    lost = requests.post(url, json=[[99]], timeout=30)
    assert lost.status_code == 503
    assert "this worker is being replaced" in lost.json()["message"]
    # What is sent meanwhile may reach the dying worker, and then gets TorchServe's own 500.
    assert eventually(lambda: requests.post(url, json=[[3]], timeout=60).status_code == 200, 60)
    assert requests.post(url, json=[[3]], timeout=30).json() == wanted
    assert [worker.pid for worker in serving.workers()] != [pid]
    assert serving.ts_mps("stop").returncode == 0
    assert serving.left() == []
