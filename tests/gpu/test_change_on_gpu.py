"""Workers of a real GPU replaced, added and ended under 500 requests a second: none is lost, and each is a client."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest
from sending import Senders
from serving import Serving
from support import eventually

from ts_mps.torchserve import door

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

MATRIX = """
import os
import torch

class Matrix:
    def initialize(self, context):
        self.matrix = torch.randn(1024, 1024, device="cuda") / 32

    def handle(self, data, context):
        with torch.inference_mode():
            (self.matrix @ self.matrix).sum().item()
        return [bytes(row["body"]) + b" " + str(os.getpid()).encode() for row in data]
"""


def doors_can_be_shut() -> bool:
    """Whether this machine lets a parent shut its child's listener; sandboxes of containers forbid pidfd_getfd."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        hold = [sys.executable, "-c", "print(flush=True); input()"]
        child = subprocess.Popen(
            hold, pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    try:
        assert child.stdout is not None and child.stdout.readline() == "\n"
        return door.shut(child.pid, port)
    finally:
        child.communicate("\n")


def test_every_change_under_500_requests_a_second(serving: Serving) -> None:
    serving.archive("matrix", MATRIX, workers=4, batchSize=8, maxBatchDelay=5, deviceIds=[0])
    started = serving.start("--models", "matrix.mar", "--disable-token-auth", "--mps", "on")
    assert started.returncode == 0, started.stderr
    rows = []
    with Senders(serving, "matrix", clients=32, rate=20) as senders:
        assert senders.until(100)
        for words in (
            ("restart", "--rolling"),
            ("scale", "matrix", "6"),
            ("scale", "matrix", "3"),
            ("restart", "--rolling", "matrix"),
        ):
            before = {worker.pid for worker in serving.workers()}
            count, began = senders.count, time.monotonic()
            done = serving.ts_mps(*words)
            took, count = time.monotonic() - began, senders.count - count
            assert done.returncode == 0, done.stderr
            assert eventually(lambda: serving.status().as_planned, 20), serving.status().problems
            assert all(worker.attached for worker in serving.status().workers)
            new = {worker.pid for worker in serving.workers()} - before
            rows.append((" ".join(words), took, count / took, len(new), len(senders.sent.lost)))
        lost_before = list(senders.sent.lost)
        stopped = serving.ts_mps("stop", "--drain-timeout", "10")
        assert stopped.returncode == 0, stopped.stderr
    print("\nchange                      seconds  requests/s  new workers  lost")
    for name, took, rate, new_workers, lost in rows:
        print(f"{name:<28}{took:7.1f}{rate:12.0f}{new_workers:13}{lost:6}")
    print(f"{'stop':<28}{'':7}{'':12}{'':13}{len(senders.sent.lost):6}")
    assert lost_before == []
    if doors_can_be_shut():
        assert senders.sent.lost == []
    else:
        print("Connections of the very end of the stop may be reset: this machine forbids pidfd_getfd.")
    assert [new_workers for *_, new_workers, _ in rows] == [4, 2, 0, 3]
    assert all(rate > 450 for _, _, rate, *_ in rows), "32 clients at 20 a second each, less what a batch takes"
    assert serving.left() == []
