"""What ts-mps costs against stock TorchServe: at the start, and for each request. Both sides in one run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from load import burst
from serving import ECHO, Serving

from ts_mps.torchserve.command import LOG_CONFIG

NO_OP = """
class NoOp:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [b"ok"] * len(data)
"""
#: With cores to spare for load, frontend and worker the target itself; on two cores all three fight, and the ratio
#: swings by several percent from run to run.
LEAST_THROUGHPUT = 0.98 if (os.cpu_count() or 1) >= 8 else 0.90
ROUNDS = 8


class Stock:
    """TorchServe as its own launcher starts it, in a folder beside."""

    def __init__(self, serving: Serving) -> None:
        self.folder = serving.folder / "stock"
        self.folder.mkdir()
        self.store = serving.store
        self.config = serving.write_config(
            "stock.properties",
            metrics_mode="prometheus",
            metrics_config=LOG_CONFIG.with_name("metrics.yaml"),
            initial_worker_port=20000,
        )
        values = dict(line.split("=", 1) for line in self.config.read_text().splitlines())
        self.inference, self.management = values["inference_address"], values["management_address"]
        self.environ = {**serving.environ, "TMPDIR": str(self.folder)}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "ts.model_server", *arguments]

    def start(self, *models: str) -> None:
        """`torchserve --start`, with our log config so that only the worker and the launcher differ."""
        subprocess.run(
            self.command(
                "--start", "--ncs", "--model-store", str(self.store), "--ts-config", str(self.config),
                "--log-config", str(LOG_CONFIG), "--models", *models,
            ),
            cwd=self.folder, env=self.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip

    def key(self, kind: str) -> str:
        return json.loads((self.folder / "key_file.json").read_text())[kind]["key"]

    def wait(self, model: str, workers: int) -> None:
        """Poll until all workers are READY, as a deployment script would."""
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            try:
                headers = {"Authorization": f"Bearer {self.key('management')}"}
                answer = requests.get(f"{self.management}/models/{model}", headers=headers, timeout=30)
                if [w["status"] for w in answer.json()[0]["workers"]] == ["READY"] * workers:
                    return
            except (OSError, ValueError, KeyError, requests.RequestException):
                pass
            time.sleep(0.1)
        raise TimeoutError("stock TorchServe did not become ready")

    def stop(self) -> None:
        pid = int((self.folder / ".model_server.pid").read_text())
        java = psutil.Process(pid)
        subprocess.run(self.command("--stop"), cwd=self.folder, env=self.environ, check=True, capture_output=True)
        java.wait(30)


@pytest.fixture
def stock(serving: Serving) -> Iterator[Stock]:
    yield Stock(serving)


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def test_a_request_costs_what_it_costs_stock(serving, stock, capsys):
    serving.archive("noop", NO_OP)
    assert serving.start("--models", "noop.mar").returncode == 0
    stock.start("noop.mar")
    stock.wait("noop", 1)
    ours = serving.state().endpoints
    our_key = json.loads(Path(ours.key_file).read_text())["inference"]["key"]
    shape = {"processes": 2, "connections": 8, "seconds": 2.0}

    def measure(of_stock: bool) -> float:
        if of_stock:
            return burst(*address(stock.inference), "/predictions/noop", stock.key("inference"), **shape)
        return burst(ours.inference.host, ours.inference.port, "/predictions/noop", our_key, **shape)

    for of_stock in (True, False, True, False):
        measure(of_stock)  # warm up the JIT of both
    ratios, figures = [], []
    for number in range(ROUNDS):
        first = number % 2 == 0
        pair = {of_stock: measure(of_stock) for of_stock in (first, not first)}
        figures.append((pair[True], pair[False]))
        ratios.append(pair[False] / pair[True])
    ratio = statistics.median(ratios)
    with capsys.disabled():
        stock_rps, our_rps = (statistics.median(side) for side in zip(*figures, strict=True))
        print(
            f"\nno-op handler, 1 worker: stock {stock_rps:.0f} requests/s, ts-mps {our_rps:.0f}, "
            f"median of {ROUNDS} paired ratios {ratio:.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        )
    stock.stop()
    assert ratio >= LEAST_THROUGHPUT


def test_a_start_costs_little_more_than_stock(serving, stock, capsys):
    workers = 4 if (os.cpu_count() or 1) >= 8 else 1
    serving.archive("echo", ECHO, workers=workers)

    def stock_seconds() -> float:
        began = time.monotonic()
        stock.start("echo.mar")
        stock.wait("echo", workers)
        taken = time.monotonic() - began
        stock.stop()
        return taken

    def our_seconds() -> float:
        began = time.monotonic()
        assert serving.start("--models", "echo.mar").returncode == 0
        taken = time.monotonic() - began
        assert serving.ts_mps("stop").returncode == 0
        return taken

    stock_seconds()  # the first one reads torch from the disk
    pairs = [(stock_seconds(), our_seconds()) for _ in range(3)]
    stock_median, our_median = (statistics.median(side) for side in zip(*pairs, strict=True))
    with capsys.disabled():
        print(f"\nstart to all READY, {workers} workers: stock {stock_median:.2f} s, ts-mps {our_median:.2f} s")
    assert our_median <= 1.15 * stock_median + 1.0
