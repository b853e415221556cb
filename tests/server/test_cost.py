"""What ts-mps costs against stock TorchServe: at the start, and for each request. Both sides in one run."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from serving import ECHO, Serving
from support import eventually

from ts_mps.files import write_json
from ts_mps.plan.model import Plan, Slot
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.command import LOG_CONFIG, java_command
from ts_mps.torchserve.java import find_java
from ts_mps.torchserve.wrapper import wrapper_script

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from closed_loop import burst
from connection import Target

NO_OP = """
class NoOp:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [b"ok"] * len(data)
"""
#: With cores to spare for load, frontend and worker the target itself; on two cores all three fight, and the ratio
#: swings from run to run.
LEAST_THROUGHPUT = 0.98 if (os.cpu_count() or 1) >= 8 else 0.85
ROUNDS = 24


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
        self.management = values["management_address"]
        # TorchServe itself finds java by JAVA_HOME or PATH only; both sides are to run on the same one.
        java_home = Path(find_java(os.environ).path).resolve().parents[1]
        self.environ = {**serving.environ, "TMPDIR": str(self.folder), "JAVA_HOME": str(java_home)}

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


@pytest.fixture
def one_server_with_both(serving: Serving) -> Iterator[tuple[str, int, str]]:
    """One java with two models of the same handler, whose workers are ours ("ours") and TorchServe's own ("stock").

    Two servers would differ by several percent from JVM to JVM, which is more than what is looked for.
    """
    for name in ("ours", "stock"):
        serving.archive(name, NO_OP)
    paths = serving.paths()
    for folder in (serving.home.root, paths.slots, paths.failures):
        folder.mkdir(parents=True)
    write_json(paths.plan, Plan((), (Slot(0, "ours", "1.0", None),), mps=False).as_json())
    python = serving.folder / "python"
    ours = wrapper_script(sys.executable, serving.home, paths).removeprefix("#!/bin/sh\n")
    python.write_text(
        f'#!/bin/sh\ngrep -q \'"ours"\' MAR-INF/MANIFEST.json || exec {shlex.quote(sys.executable)} "$@"\n{ours}'
    )
    python.chmod(0o700)
    arguments = StartArguments(
        model_store=str(serving.store), models=("ours.mar", "stock.mar"), disable_token_auth=True
    )
    command = java_command(
        arguments,
        environ=serving.environ,
        java=find_java(os.environ).path,
        python=str(python),
        config=serving.config,
        log_config=LOG_CONFIG,
    )
    java = serving.popen(command)
    values = dict(line.split("=", 1) for line in serving.config.read_text().splitlines())
    ready = [False, False]

    def look() -> bool:
        for index, name in enumerate(("ours", "stock")):
            try:
                answer = requests.get(f"{values['management_address']}/models/{name}", timeout=30).json()
                ready[index] = answer[0]["workers"][0]["status"] == "READY"
            except (requests.RequestException, ValueError, LookupError):
                return False
        return all(ready)

    assert eventually(look, 120)
    assert [worker.state for worker in serving.workers()] == ["ready"], "one of the two is ours"
    host, _, port = values["inference_address"].removeprefix("http://").partition(":")
    yield host, int(port), ""
    java.terminate()
    java.communicate(timeout=30)


def test_a_request_costs_what_it_costs_stock(one_server_with_both, capsys):
    host, port, key = one_server_with_both

    def measure(name: str) -> float:
        target = Target(host, port, f"/predictions/{name}", (b"x",), token=key)
        seen = burst(target, processes=2, connections=16, seconds=1.0)
        assert not seen.errors, seen.first_error
        return seen.requests_per_s

    for name in ("ours", "stock") * 3:
        measure(name)  # the JVM compiles
    pairs = []
    for number in range(ROUNDS):
        order = ("ours", "stock") if number % 2 else ("stock", "ours")
        pair = {name: measure(name) for name in order}
        pairs.append((pair["ours"], pair["stock"]))
    ratios = sorted(ours / stock for ours, stock in pairs)
    ratio = statistics.median(ratios)
    with capsys.disabled():
        our_rps, stock_rps = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(
            f"\nno-op handler, 1 worker: stock {stock_rps:.0f} requests/s, ts-mps {our_rps:.0f}, median of {ROUNDS} "
            f"paired ratios {ratio:.3f}, middle half {ratios[ROUNDS // 4]:.3f}-{ratios[-ROUNDS // 4]:.3f}"
        )
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
