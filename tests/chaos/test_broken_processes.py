"""Processes killed under load on the CPU: java, the guardian, a worker; everything as planned again by itself."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from loading import Load
from serving import ECHO, Serving
from support import eventually

from ts_mps.events import recorded

START = ("--models", "echo.mar", "--disable-token-auth")

#: Dies in the batch that says so; says who it is otherwise.
MORTAL = """
import os

class Mortal:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        if bytes(data[0]["body"]) == b"die":
            os._exit(3)
        return [str(os.getpid())] * len(data)
"""


def begin(serving: Serving, handler: str = ECHO, workers: int = 2) -> None:
    serving.environ["OMP_NUM_THREADS"] = "1"
    serving.archive("echo", handler, workers=workers)
    done = serving.start(*START)
    assert done.returncode == 0, done.stderr


def pids(serving: Serving) -> list[int]:
    return sorted(worker.pid for worker in serving.workers())


def kinds(serving: Serving) -> list[str]:
    return [event.kind for event in recorded(serving.paths())]


def stop(serving: Serving) -> None:
    stopped = serving.ts_mps("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert serving.left() == []


class TestJava:
    def test_it_is_started_again_with_all_its_workers(self, serving):
        begin(serving)
        assert serving.api().scale("echo", "1.0", 2) is None
        first, old = serving.state().java, pids(serving)
        with Load(serving, "echo") as load:
            assert eventually(lambda: load.good_since(0.0))
            killed = time.monotonic()
            os.kill(first.pid, signal.SIGKILL)
            assert eventually(lambda: serving.state().phase == "recovering", 5)
            status = serving.ts_mps("status").stdout
            assert "It is recovering: TorchServe ended by itself by signal 9." in status
            assert eventually(lambda: serving.state().phase == "serving", 40)
            assert eventually(lambda: load.good_since(killed))
        assert serving.state().java != first and not set(old) & set(pids(serving))
        assert serving.ts_mps("status").returncode == 0
        (recovered,) = [event for event in recorded(serving.paths()) if event.kind == "recovered"]
        assert recovered.cause == "java-gone" and 0 < recovered.seconds < 40
        assert all(answer.sent > killed - 1 for answer in load.failed())
        stop(serving)

    def test_after_five_times_in_a_row_it_is_given_up_with_1(self, serving):
        serving.archive("echo", ECHO)
        process = serving.popen(serving.start_command(*START, "--foreground"))
        assert eventually(lambda: (state := serving.state()) is not None and state.phase == "serving", 90)
        for _ in range(6):
            java = serving.state().java
            os.kill(java.pid, signal.SIGKILL)
            eventually(lambda java=java: serving.state().java != java or process.poll() is not None, 30)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 1, output
        assert "is not started again" in serving.state().error
        assert kinds(serving).count("java-gone") == 6
        assert serving.left() == []


class TestGuardian:
    def test_a_start_takes_over_without_touching_a_worker(self, serving):
        begin(serving)
        java, workers = serving.state().java, pids(serving)
        with Load(serving, "echo") as load:
            assert eventually(lambda: load.good_since(0.0))
            serving.state().guardian.send(signal.SIGKILL)
            assert eventually(lambda: "nothing watches it" in serving.ts_mps("status").stdout, 5)
            process = serving.popen(serving.start_command(*START, "--foreground"))
            assert eventually(lambda: serving.state().guardian.pid == process.pid and serving.status().as_planned, 30)
            assert (serving.state().java, pids(serving)) == (java, workers)
            # What it took over it also keeps: a worker,
            os.kill(workers[0], signal.SIGKILL)
            assert eventually(lambda: "recovered" in kinds(serving), 30)
        assert len(load.failed()) <= 2, "at most what the killed worker held"
        # and java, which is not its child.
        java.send(signal.SIGKILL)
        assert eventually(lambda: serving.state().java != java and serving.state().phase == "serving", 40)
        stop(serving)
        assert process.wait(10) == 0

    def test_one_that_is_taken_over_while_torchserve_is_told_to_end_is_not_started_again(self, serving):
        begin(serving)
        serving.state().guardian.send(signal.SIGKILL)
        assert eventually(lambda: not serving.state().guardian.alive(), 5)
        Path(serving.state().pid_file).unlink()  # `torchserve --stop` removes it, and sends SIGTERM
        process = serving.popen(serving.start_command(*START, "--foreground"))
        assert eventually(lambda: serving.state().guardian.pid == process.pid and serving.status().as_planned, 30)
        serving.state().java.send(signal.SIGTERM)
        assert process.wait(60) == 0
        assert serving.left() == [] and "java-gone" not in kinds(serving)

    def test_other_models_are_refused_and_nothing_is_touched(self, serving):
        begin(serving)
        workers = pids(serving)
        serving.state().guardian.send(signal.SIGKILL)
        serving.archive("other", ECHO)
        assert eventually(lambda: not serving.state().guardian.alive(), 5)
        refused = serving.start("--models", "other.mar", "--disable-token-auth")
        assert refused.returncode == 1
        assert "serves echo without a guardian, and other is asked for" in refused.stderr
        assert pids(serving) == workers
        stop(serving)


class TestWorker:
    def test_a_killed_one_is_back_and_nobody_else_noticed(self, serving):
        begin(serving)
        victim, other = serving.workers()
        with Load(serving, "echo") as load:
            assert eventually(lambda: load.good_since(0.0))
            began = time.monotonic()
            os.kill(victim.pid, signal.SIGKILL)
            assert eventually(lambda: len(pids(serving)) == 2 and victim.pid not in pids(serving), 20)
            assert eventually(lambda: all(worker.state == "ready" for worker in serving.workers()), 20)
            took = time.monotonic() - began
            assert eventually(lambda: "recovered" in kinds(serving), 5)
        assert other.pid in pids(serving)
        assert len(load.failed()) <= 1, "only what it was inside of"
        (recovered,) = [event for event in recorded(serving.paths()) if event.kind == "recovered"]
        assert recovered.seconds < took + 2
        stop(serving)

    def test_a_crash_loop_is_held_back_and_the_other_model_serves_on(self, serving):
        serving.archive("poor", MORTAL)
        serving.environ["OMP_NUM_THREADS"] = "1"
        serving.archive("echo", ECHO)
        done = serving.start("--models", "poor.mar", "echo.mar", "--disable-token-auth")
        assert done.returncode == 0, done.stderr
        with Load(serving, "echo", clients=1) as good, Load(serving, "poor", clients=1, body=b"die"):
            assert eventually(lambda: "held-back" in kinds(serving), 50), list(recorded(serving.paths()))
            status = serving.ts_mps("status").stdout
            assert "Model poor: 1 of 1 places are held back: Model poor crashed again and again on the CPU" in status
            # TorchServe was told to stop: it says so at once instead of letting requests wait.
            assert eventually(lambda: not [w for w in serving.api().describe("poor")[0].workers], 20)
            moment = time.monotonic()
            assert eventually(lambda: good.good_since(moment), 10)
        assert good.failed() == []
        stop(serving)
