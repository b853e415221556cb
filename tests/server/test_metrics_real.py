"""What everyone sees of an instance: the real TorchServe and guardian on a simulated GPU, and looks made by hand."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import replace

import psutil
import pytest
import requests
from serving import ECHO
from support import eventually, simulated_gpu

from ts_mps.guardian.state import load_state
from ts_mps.guardian.watched import Watched, WatchedGpu, WatchedModel
from ts_mps.worker_records import workers

UUID = str(simulated_gpu(0)["uuid"])
LINE = re.compile(r"(\w+)\{(.*)\} (\S+)")


@pytest.fixture
def server(simulated):
    """Two workers of one model without MPS on a simulated GPU; metrics are collected once a second."""
    simulated.environ["OMP_NUM_THREADS"] = "1"
    simulated.archive("echo", ECHO, workers=2)
    simulated.config = simulated.write_config(metric_time_interval=1)
    health = simulated.write_config("unused")  # for a free port
    port = dict(line.split("=", 1) for line in health.read_text().split())["grpc_inference_port"]
    address = f"127.0.0.1:{port}"
    done = simulated.start("--models", "echo.mar", "--mps", "off", "--disable-token-auth", "--health-address", address)
    assert done.returncode == 0, done.stderr
    simulated.health = f"http://{address}"
    yield simulated
    simulated.ts_mps("stop", "--drain-timeout", "0")


def instance(server):
    return server.home.instance("default")


def page(server) -> tuple[dict[str, dict[tuple[tuple[str, str], ...], float]], str]:
    """name -> {labels without the host: value}, and the whole text."""
    metrics = load_state(instance(server)).endpoints.metrics
    text = requests.get(f"{metrics}/metrics", timeout=10).text
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for match in filter(None, map(LINE.fullmatch, text.splitlines())):
        labels = tuple(pair for pair in re.findall(r'(\w+)="([^"]*)"', match[2]) if pair[0].lower() != "hostname")
        found.setdefault(match[1], {})[labels] = float(match[3])
    return found, text


def value(server, name, **labels):
    return page(server)[0].get(name, {}).get(tuple(labels.items()))


def guardian(server) -> psutil.Process:
    return psutil.Process(load_state(instance(server)).guardian.pid)


def look(server, **changed) -> None:
    fine = Watched(
        java=True,
        java_restarts=0,
        gpus=(WatchedGpu(UUID, 0, "running", "ACTIVE", 2, 48),),
        models=(WatchedModel("echo", 2, 2, 2, restarts={"worker-killed": 1}),),
        faults={f"server-fault {UUID}": 1},
        took=0.01,
    )
    replace(fine, **changed).save(instance(server))


def test_what_prometheus_scrapes(server):
    assert eventually(lambda: value(server, "ts_mps_workers_ready", model_name="echo") == 2.0, 30)
    found = page(server)[0]
    assert found["ts_mps_guardian_up"] == {(): 1.0} and found["ts_mps_look_fresh"] == {(): 1.0}
    assert found["ts_mps_workers_planned"] == found["ts_mps_workers_attached"] == {(("model_name", "echo"),): 2.0}

    # From here on the looks are ours.
    guardian(server).suspend()
    labels = {"kind": "server-fault", "gpu": "0", "uuid": UUID}
    assert eventually(lambda: look(server) or value(server, "ts_mps_faults_total", **labels) == 1.0, 20)
    assert value(server, "ts_mps_worker_restarts_total", model_name="echo", cause="worker-killed") == 1.0
    found, text = page(server)
    assert "# TYPE ts_mps_faults_total counter" in text and "# TYPE ts_mps_gpu_clients gauge" in text
    assert found["ts_mps_gpu_clients"] == {(("gpu", "0"), ("uuid", UUID)): 2.0}
    assert found["ts_mps_server_state"][(("gpu", "0"), ("uuid", UUID), ("state", "ACTIVE"))] == 1.0
    # TorchServe's own are still there.
    assert {"CPUUtilization", "MemoryUsed", "DiskUtilization", "GPUMemoryUsed", "GPUUtilization"} <= set(found)

    living = {(str(worker.slot.number), str(worker.pid)) for worker in workers(instance(server))}
    info = found["ts_mps_worker_info"]
    assert {(dict(key)["slot"], dict(key)["pid"]) for key in info} == living and len(living) == 2
    assert set(info.values()) == {1.0} and {dict(key)["uuid"] for key in info} == {UUID}
    for key, size in found["ts_mps_worker_resident_memory_bytes"].items():
        assert 2**20 < size < 2**34 and dict(key)["model_name"] == "echo"

    # A counter counts what came, however often it is collected.
    time.sleep(2.5)
    look(server, faults={f"server-fault {UUID}": 4})
    assert eventually(lambda: value(server, "ts_mps_faults_total", **labels) == 4.0, 20)

    # A worker that is replaced: its pid becomes 0, its slot goes on.
    slot, pid = sorted(living)[0]
    os.kill(int(pid), signal.SIGKILL)
    named = {"model_name": "echo", "slot": slot, "gpu": "0"}
    assert eventually(lambda: value(server, "ts_mps_worker_info", **named, uuid=UUID, pid=pid) == 0.0, 30)
    assert eventually(lambda: value(server, "ts_mps_worker_ready", **named) == 1.0, 60)
    (now,) = (worker.pid for worker in workers(instance(server)) if str(worker.slot.number) == slot)
    assert eventually(lambda: value(server, "ts_mps_worker_info", **named, uuid=UUID, pid=str(now)) == 1.0, 20)

    guardian(server).resume()

    # No collection failed, and the frontend took every line.
    log = (server.run_folder / "logs/ts_log.log").read_text()
    said = {line.rpartition(" - ")[2] for line in log.splitlines() if "metrics.MetricCollector" in line}
    assert said <= {"worker pid is not available yet."}, said


def test_everyone_sees_a_dead_guardian_and_a_stale_look(server):
    assert eventually(lambda: requests.get(f"{server.health}/ready", timeout=10).status_code == 200, 20)
    assert requests.get(f"{server.health}/live", timeout=10).status_code == 200
    assert server.ts_mps("status", "--ready").returncode == 0
    assert json.loads(server.ts_mps("status", "--ready", "--json").stdout)["look"]["state"] == "fresh"

    # Throughput of requests that really came.
    inference = load_state(instance(server)).endpoints.inference
    watching = server.popen(server.command("status", "--watch", "--json"))
    deadline, best = time.monotonic() + 40, 0.0
    while best == 0.0 and time.monotonic() < deadline:
        for _ in range(20):
            assert requests.post(f"{inference}/predictions/echo", data=b"x", timeout=10).status_code == 200
        best = json.loads(watching.stdout.readline())["models"][0]["per_second"]
    watching.send_signal(signal.SIGINT)
    assert watching.wait(20) == 0 and 0 < best < 10_000

    guardian(server).kill()
    assert eventually(lambda: value(server, "ts_mps_guardian_up") == 0.0, 20)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{server.health}/live", timeout=10)
    assert eventually(lambda: value(server, "ts_mps_look_fresh") == 0.0, 30)
    # It serves on, and the workers' own files are as true as before.
    found = page(server)[0]
    assert list(found["ts_mps_worker_ready"].values()) == [1.0, 1.0]
    done = server.ts_mps("status", "--ready")
    assert done.returncode == 7 and "for the guardian is gone" in done.stdout
