"""The life of an instance, on the real TorchServe, on the CPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import requests
from serving import BROKEN, ECHO, SLOW
from support import eventually

from ts_mps.torchserve.transport import call_url


def test_start_serve_status_stop(serving):
    serving.archive("echo", ECHO, workers=2)
    started = serving.start("--models", "echo.mar")
    assert started.returncode == 0, started.stderr
    assert "as planned" in started.stdout
    assert "MPS is off" in started.stdout

    status = json.loads(serving.ts_mps("status", "--json").stdout)
    assert status["as_planned"] and status["phase"] == "serving"
    assert [(w["model"], w["state"], w["slot"]) for w in status["workers"]] == [
        ("echo", "READY", 0),
        ("echo", "READY", 1),
    ]
    assert status["config"] == str(serving.paths().config)
    assert serving.api().predict("echo", b"hello") == b"hello"

    assert "already running" in (again := serving.start("--models", "echo.mar")).stderr
    assert again.returncode == 1

    stopped = serving.ts_mps("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert serving.left() == []
    repeated = serving.ts_mps("stop")
    assert repeated.returncode == 0 and "not running" in repeated.stdout
    assert serving.ts_mps("status").returncode == 7


def test_a_worker_gets_its_slot_and_threads(serving):
    show = """
import json, os, torch
class Show:
    def initialize(self, context):
        self.gpu = context.system_properties.get("gpu_id")
    def handle(self, data, context):
        seen = {"threads": torch.get_num_threads(), "omp": os.environ.get("OMP_NUM_THREADS"), "gpu": self.gpu,
                "cores": sorted(os.sched_getaffinity(0)), "pid": os.getpid()}
        return [json.dumps(seen)] * len(data)
"""
    serving.archive("show", show, workers=2)
    assert serving.start("--models", "show.mar", "--cpu-affinity", "cores").returncode == 0
    cores = sorted(os.sched_getaffinity(0))
    seen = json.loads(serving.api().predict("show", b""))
    assert seen["threads"] == int(seen["omp"]) == max(1, len(cores) // 2)
    assert seen["gpu"] is None
    mine = next(worker for worker in serving.workers() if worker.pid == seen["pid"])
    assert seen["cores"] == sorted(mine.slot.cores)
    assert all(worker.planned for worker in serving.workers())


def test_a_handler_that_raises_ends_the_start_in_seconds_with_its_traceback(serving):
    serving.archive("broken", BROKEN)
    began = time.monotonic()
    failed = serving.start("--models", "broken.mar")
    assert failed.returncode == 6
    assert time.monotonic() - began < 60
    assert "broken" in failed.stderr and "ValueError: the weights are of another model" in failed.stderr
    assert "in initialize" in failed.stderr
    assert serving.left() == []


def test_torchserve_stop_stops_it(serving):
    serving.archive("echo", ECHO)
    assert serving.start("--models", "echo.mar").returncode == 0
    guardian = serving.state().guardian
    stopped = serving.call([sys.executable, "-m", "ts.model_server", "--stop"])
    assert "TorchServe has stopped." in stopped.stdout
    assert eventually(lambda: not guardian.alive(), 30)
    assert serving.state().phase == "stopped"
    assert serving.left() == []


def test_workers_beats_the_archive_both_ways(serving):
    serving.archive("echo", ECHO, workers=2)
    serving.archive("other", ECHO, workers=1)
    started = serving.start("--models", "echo.mar", "other.mar", "--workers", "echo=1", "other=2")
    assert started.returncode == 0, started.stderr
    status = serving.status()
    assert [worker.model for worker in status.workers] == ["echo", "other", "other"]
    assert status.as_planned, status.problems


def test_scaling_past_the_plan_on_the_cpu_takes_an_extra_slot(serving):
    serving.archive("echo", ECHO)
    assert serving.start("--models", "echo.mar").returncode == 0
    serving.api().scale("echo", "1.0", 2)
    assert eventually(lambda: [w.state for w in serving.workers()] == ["ready", "ready"], 60)
    assert [w.planned for w in serving.workers()] == [True, False]
    serving.api().scale("echo", "1.0", 1)
    assert eventually(lambda: len(serving.workers()) == 1, 30)


def test_a_killed_worker_comes_back_into_its_slot(serving):
    serving.archive("echo", ECHO)
    assert serving.start("--models", "echo.mar").returncode == 0
    first = serving.workers()[0]
    os.kill(first.pid, signal.SIGKILL)
    assert eventually(lambda: any(w.state == "ready" and w.pid != first.pid for w in serving.workers()), 60)
    assert serving.workers()[0].slot == first.slot
    assert eventually(lambda: serving.status().as_planned, 30), serving.status().problems


def test_a_stop_waits_for_what_is_in_flight(serving):
    serving.archive("slow", SLOW)
    assert serving.start("--models", "slow.mar").returncode == 0
    answers = []
    api = serving.api()
    # One in the worker and one in TorchServe's queue.
    clients = [threading.Thread(target=lambda: answers.append(api.predict("slow", b"2"))) for _ in range(2)]
    for client in clients:
        client.start()
    time.sleep(0.7)
    assert serving.ts_mps("stop").returncode == 0
    for client in clients:
        client.join(20)
    assert answers == [b"slept", b"slept"]
    assert serving.left() == []


def test_a_drain_ends_at_its_timeout(serving):
    serving.archive("slow", SLOW)
    assert serving.start("--models", "slow.mar", "--drain-timeout", "60").returncode == 0
    endpoint = call_url(serving.state().endpoints.inference)
    keys = json.loads((serving.run_folder / "key_file.json").read_text())
    headers = {"Authorization": f"Bearer {keys['inference']['key']}"}
    failures = []

    def ask():
        try:
            failures.append(
                requests.post(f"{endpoint}/predictions/slow", b"100", headers=headers, timeout=60).status_code
            )
        except requests.RequestException as error:
            failures.append(type(error).__name__)

    client = threading.Thread(target=ask)
    client.start()
    time.sleep(0.7)
    began = time.monotonic()
    stopped = serving.ts_mps("stop", "--drain-timeout", "1")
    assert stopped.returncode == 0, stopped.stderr
    assert 1 < time.monotonic() - began < 30
    client.join(20)
    assert failures and failures != [200]
    assert serving.left() == []


class TestForeground:
    def begin(self, serving, *more):
        process = serving.popen(serving.start_command("--models", "echo.mar", "--foreground", *more))
        assert eventually(lambda: (state := serving.state()) is not None and state.phase == "serving", 90)
        return process

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_with_0(self, serving, signum):
        serving.archive("echo", ECHO)
        process = self.begin(serving)
        process.send_signal(signum)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert "Model server started." in output, "java's own output is inherited"
        assert serving.left() == []

    def test_ctrl_c_reaches_the_guardian_only(self, serving):
        serving.archive("slow", SLOW)
        process = serving.popen(serving.start_command("--models", "slow.mar", "--foreground"))
        assert eventually(lambda: (state := serving.state()) is not None and state.phase == "serving", 90)
        answers = []
        client = threading.Thread(target=lambda: answers.append(serving.api().predict("slow", b"2")))
        client.start()
        time.sleep(0.7)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        client.join(20)
        assert answers == [b"slept"], output
        assert process.returncode == 0

    def test_it_serves_on_when_nobody_reads_its_output(self, serving):
        serving.archive("echo", ECHO)
        process = serving.popen(serving.start_command("--models", "echo.mar", "--foreground"))
        process.stdout.close()
        assert eventually(lambda: (state := serving.state()) is not None and state.phase == "serving", 90)
        assert serving.api().predict("echo", b"x") == b"x"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert serving.left() == []

    def test_as_pid_1_it_reaps_orphans_and_forwards_sigterm(self, serving):
        tools = shutil.which("unshare") and shutil.which("nsenter")
        if os.getuid() != 0 or not tools or subprocess.run(["unshare", "-pf", "true"], check=False).returncode != 0:
            pytest.skip("a PID namespace needs root, util-linux and the right to unshare")
        serving.archive("echo", ECHO)
        inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = serving.start_command("--models", "echo.mar", "--foreground")
        process = serving.popen([*inside, *command])
        assert eventually(lambda: (state := serving.state()) is not None and state.phase == "serving", 90)
        first = psutil.Process(process.pid).children()[0]
        orphans = "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        time.sleep(1); os._exit(0)\n"
        subprocess.run(["nsenter", "-t", str(first.pid), "-p", sys.executable, "-c", orphans], check=True)
        assert eventually(lambda: len(first.children()) >= 4, 5), "they are ours now"
        assert eventually(lambda: len(first.children()) == 1, 10), "only java is left, and no zombie"
        first.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert serving.left() == []


def test_sigterm_in_the_middle_of_a_start_undoes_it(serving):
    serving.archive("echo", ECHO)
    process = serving.popen(serving.start_command("--models", "echo.mar"))
    assert eventually(lambda: (state := serving.state()) is not None and state.java is not None, 60)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert eventually(lambda: serving.left() == [], 10), serving.left()
    assert serving.state().phase == "failed"


class TestKilled:
    """After kill -9 of one or all, `stop` cleans up and `start` works again."""

    def test_guardian(self, serving):
        serving.archive("echo", ECHO)
        assert serving.start("--models", "echo.mar").returncode == 0
        os.kill(serving.state().guardian.pid, signal.SIGKILL)
        assert eventually(lambda: "guardian is gone" in serving.ts_mps("status").stdout, 5)
        stopped = serving.ts_mps("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert serving.left() == []

    def test_everything(self, serving):
        serving.archive("echo", ECHO)
        assert serving.start("--models", "echo.mar").returncode == 0
        serving.kill_everything()
        assert eventually(lambda: serving.processes() == [], 10)
        again = serving.start("--models", "echo.mar")
        assert again.returncode == 0, again.stderr
        assert serving.api().predict("echo", b"x") == b"x"
        assert serving.ts_mps("stop").returncode == 0
        assert serving.left() == []


def test_a_worker_that_torchserve_started_at_its_very_end_goes_too(serving):
    """It has no slot yet, and nobody will ever connect to its socket."""
    serving.archive("echo", ECHO)
    assert serving.start("--models", "echo.mar").returncode == 0
    worker = psutil.Process(serving.workers()[0].pid).cmdline()
    socket = serving.temp / ".ts.sock.9777"
    words = [str(socket) if word == serving.workers()[0].socket else word for word in worker]
    late = subprocess.Popen(words, cwd=serving.run_folder, env=serving.environ, stdout=subprocess.DEVNULL)
    assert eventually(socket.is_socket, 20)
    stopped = serving.ts_mps("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert late.wait(5) == -signal.SIGKILL
    assert serving.left() == []


def test_two_instances_side_by_side(serving):
    serving.archive("echo", ECHO)
    assert serving.start("--models", "echo.mar").returncode == 0
    serving.config = serving.write_config("second.properties")
    clash = serving.start("--models", "echo.mar", "--name", "second")
    assert clash.returncode == 3 and "key_file.json" in clash.stderr
    second = serving.start("--models", "echo.mar", "--name", "second", "--disable-token-auth")
    assert second.returncode == 0, second.stderr
    assert serving.api("default").predict("echo", b"1") == b"1"
    assert serving.api("second").predict("echo", b"2") == b"2"
    sockets = {worker.socket for name in ("default", "second") for worker in serving.workers(name)}
    assert len(sockets) == 2
    assert serving.ts_mps("stop", "--name", "default").returncode == 0
    assert serving.api("second").predict("echo", b"3") == b"3"
    assert serving.ts_mps("stop", "--name", "second").returncode == 0
    assert serving.left() == []


def test_an_archive_of_runtime_python3_goes_through_our_worker_too(serving):
    serving.archive("echo", ECHO, runtime="python3")
    started = serving.start("--models", "echo.mar")
    assert started.returncode == 0, started.stderr
    assert [worker.slot.model for worker in serving.workers()] == ["echo"]


def test_a_snapshot_that_torchserve_would_prefer_is_reported_and_used(serving):
    serving.archive("echo", ECHO)
    plain = serving.command("start", "--model-store", str(serving.store))
    assert serving.call([*plain, "--models", "echo.mar", "--ts-config", str(serving.config)]).returncode == 0
    serving.api().scale("echo", "1.0", 2, synchronous=True)
    assert serving.ts_mps("stop").returncode == 0
    again = serving.call(plain)
    assert again.returncode == 0, again.stderr
    assert "snapshot" in again.stderr and "--ncs" in again.stderr
    assert len(serving.status().workers) == 2, "TorchServe's snapshot brings the scaled worker back"
