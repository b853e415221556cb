"""The life of an instance with MPS: real TorchServe, real workers, and simulated GPUs and daemons."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from serving import ECHO, Serving
from support import CONTROL, eventually, mps_processes, simulated_gpu

from ts_mps.guardian.state import load_state
from ts_mps.mps.control import Control
from ts_mps.mps.process import find
from ts_mps.torchserve.failures import failures

#: Becomes an MPS client by the simulator's side door, and leaves there what it saw.
CLIENT = """
import json, os
from pathlib import Path

class Client:
    def initialize(self, context):
        pipe = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
        self.seen = {"visible": os.environ["CUDA_VISIBLE_DEVICES"], "gpu_id": context.system_properties["gpu_id"],
                     "pipe": pipe, "pid": os.getpid()}
        clients = Path(pipe, "sim-clients")
        clients.mkdir(exist_ok=True)
        (clients / str(os.getpid())).write_text(json.dumps(self.seen))

    def handle(self, data, context):
        return [json.dumps(self.seen)] * len(data)
"""

FIRST, SECOND = (simulated_gpu(index)["uuid"] for index in range(2))


def with_gpus(serving: Serving, *gpus: dict[str, object]) -> Serving:
    serving.environ["SIM_GPUS"] = json.dumps(gpus)
    return serving


@pytest.fixture
def two(simulated: Serving) -> Serving:
    """Serving on two simulated GPUs."""
    return with_gpus(simulated, simulated_gpu(0), simulated_gpu(1))


def seen(serving: Serving, uuid: str) -> dict[int, dict[str, object]]:
    """What each living client of a GPU's daemon saw, by pid."""
    pipe = serving.home.gpu(uuid).pipe
    clients = Control(pipe).all_clients()
    return {pid: json.loads((pipe / "sim-clients" / str(pid)).read_text()) for pid in clients}


def nothing_left(serving: Serving) -> bool:
    """No process, no daemon, no socket, and no pipe folder."""
    assert serving.left() == []
    assert mps_processes(serving.folder) == []
    return not list(serving.home.root.glob("gpus/*/pipe"))


def test_every_worker_is_proven_on_its_planned_gpu(two):
    two.archive("client", CLIENT, workers=4)
    started = two.start("--models", "client.mar")
    assert started.returncode == 0, started.stderr
    status = two.status()
    assert status.as_planned, status.problems
    assert [(gpu.uuid, gpu.daemon, gpu.server, gpu.clients, gpu.cap) for gpu in status.gpus] == [
        (FIRST, "running", "ACTIVE", 2, 48),
        (SECOND, "running", "ACTIVE", 2, 48),
    ]
    assert [(w.gpu, w.attached, w.state) for w in status.workers] == [
        (0, True, "READY"),
        (1, True, "READY"),
        (0, True, "READY"),
        (1, True, "READY"),
    ]
    for worker in two.workers():
        assert worker.planned and worker.proof.server in Control(two.home.gpu(worker.slot.gpu).pipe).servers()
        assert seen(two, worker.slot.gpu)[worker.pid] == {
            "visible": worker.slot.gpu,
            "gpu_id": 0,
            "pipe": str(two.home.gpu(worker.slot.gpu).pipe),
            "pid": worker.pid,
        }
    assert json.loads(two.api().predict("client", b""))["pid"] in {worker.pid for worker in two.workers()}

    named = [process.cmdline()[0].rpartition("/")[2] for process in mps_processes(two.folder)]
    assert sorted(named) == [CONTROL] * 2 + ["nvidia-cuda-mps-server"] * 2
    stopped = two.ts_mps("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert nothing_left(two)


def test_a_worker_that_is_no_client_ends_the_start(simulated):
    """It finds no CUDA in the proof, for which the CPU build of torch has none; on a GPU it would be found unlisted."""
    simulated.archive("echo", ECHO)
    failed = simulated.start("--models", "echo.mar")
    assert failed.returncode == 6, failed.stderr
    assert "A worker of model echo (version 1.0) did not load: " in failed.stderr
    assert "in prove" in failed.stderr and "torch.zeros" in failed.stderr
    assert simulated.state().phase == "failed"
    assert nothing_left(simulated)


@pytest.mark.parametrize(
    ("visible", "expected"), [("1", [SECOND]), (SECOND, [SECOND]), (f"{SECOND},{FIRST}", [SECOND, FIRST]), ("", [])]
)
def test_cuda_visible_devices_is_honoured(two, visible, expected):
    two.archive("client", CLIENT if expected else ECHO, workers=2)
    started = two.start("--models", "client.mar", CUDA_VISIBLE_DEVICES=visible)
    assert started.returncode == 0, started.stderr
    status = two.status()
    assert [gpu.uuid for gpu in status.gpus] == expected
    assert status.as_planned and status.mps == ("on" if expected else "off")
    assert len(status.workers) == 2
    for uuid in expected:
        assert {client["visible"] for client in seen(two, uuid).values()} == {uuid}
    if not expected:
        assert "CUDA_VISIBLE_DEVICES or number_of_gpu leaves no GPU" in started.stdout
    assert len(mps_processes(two.folder)) == 2 * len(expected)
    assert two.ts_mps("stop").returncode == 0
    assert nothing_left(two)


def test_number_of_gpu_and_device_ids_are_honoured(two):
    two.archive("client", CLIENT, workers=2, deviceType="gpu", deviceIds=[1])
    two.archive("free", CLIENT, workers=1)
    started = two.start("--models", "client.mar", "free.mar")
    assert started.returncode == 0, started.stderr
    assert sorted((w.model, w.gpu) for w in two.status().workers) == [("client", 1), ("client", 1), ("free", 0)]
    assert len(seen(two, SECOND)) == 2
    assert two.ts_mps("stop").returncode == 0

    two.config = two.write_config("one.properties", number_of_gpu=1)
    two.archive("client", CLIENT, workers=2)
    started = two.start("--models", "client.mar")
    assert started.returncode == 0, started.stderr
    assert [gpu.uuid for gpu in two.status().gpus] == [FIRST]
    assert set(seen(two, FIRST)) == {worker.pid for worker in two.workers()}
    assert two.ts_mps("stop").returncode == 0
    assert nothing_left(two)


def test_a_daemon_of_the_user_is_adopted_and_survives(simulated):
    pipe = simulated.folder / "mine"
    pipe.mkdir()
    theirs = {**simulated.environ, "CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_VISIBLE_DEVICES": FIRST}
    subprocess.run([CONTROL, "-d"], env=theirs, check=True)
    daemon = find(pipe).pid
    simulated.archive("client", CLIENT)
    started = simulated.start("--models", "client.mar", CUDA_MPS_PIPE_DIRECTORY=str(pipe))
    assert started.returncode == 0, started.stderr
    assert "already answers" in started.stdout
    status = simulated.status()
    assert status.as_planned, status.problems
    assert [(gpu.daemon, gpu.pipe) for gpu in status.gpus] == [("adopted", str(pipe))]
    assert Control(pipe).all_clients() == (simulated.workers()[0].pid,)
    assert not simulated.home.gpu(FIRST).pipe.exists()
    assert simulated.ts_mps("stop").returncode == 0
    assert find(pipe).pid == daemon and Control(pipe).answers()
    Control(pipe).quit(1)
    assert eventually(lambda: simulated.left() == []), simulated.left()


def test_two_instances_share_a_daemon_and_the_last_one_out_stops_it(simulated):
    simulated.archive("client", CLIENT)
    assert simulated.start("--models", "client.mar").returncode == 0
    daemon = find(simulated.home.gpu(FIRST).pipe).pid
    simulated.config = simulated.write_config("second.properties")
    second = simulated.start("--models", "client.mar", "--name", "second", "--disable-token-auth")
    assert second.returncode == 0, second.stderr
    assert find(simulated.home.gpu(FIRST).pipe).pid == daemon
    both = {worker.pid for name in ("default", "second") for worker in simulated.workers(name)}
    assert set(seen(simulated, FIRST)) == both and len(both) == 2
    assert simulated.status().gpus[0].clients == 2
    assert simulated.ts_mps("stop").returncode == 0
    assert find(simulated.home.gpu(FIRST).pipe).pid == daemon
    assert simulated.status("second").as_planned, simulated.status("second").problems
    assert simulated.ts_mps("stop", "--name", "second").returncode == 0
    assert nothing_left(simulated)


def test_the_cap_holds_whoever_asks(simulated):
    with_gpus(simulated, simulated_gpu(compute_capability=[6, 0]))
    # One thread each: torch is not needed then, which would take its time 18 times over.
    simulated.environ["OMP_NUM_THREADS"] = "1"
    simulated.archive("client", CLIENT, workers=14)
    refused = simulated.start("--models", "client.mar", "--workers", "17")
    assert refused.returncode == 4, refused.stderr
    for part in ("GPU 0", "17 workers", "takes 16 clients", "client: 17", "at most 16"):
        assert part in refused.stderr
    assert simulated.state() is None and simulated.left() == [], "nothing was started"

    started = simulated.start("--models", "client.mar")
    assert started.returncode == 0, started.stderr
    planned = {worker.pid for worker in simulated.workers()}
    assert len(planned) == 14
    simulated.api().scale("client", "1.0", 18)
    assert eventually(lambda: len(simulated.workers()) == 16 and len(failures(simulated.paths())) >= 2, 60)
    refusal = failures(simulated.paths())[-1].what
    for part in ("GPU 0 (NVIDIA H200", "16 of 16 MPS clients", "16 x client of instance default", "the others serve"):
        assert part in refusal
    assert "Scale down first, for example PUT /models/client?min_worker=N" in refusal
    assert eventually(lambda: all(worker.state == "ready" for worker in simulated.workers()), 60)
    living = {worker.pid for worker in simulated.workers()}
    assert planned < living and set(seen(simulated, FIRST)) == living and len(living) == 16

    shown = simulated.ts_mps("status")
    assert "not loaded" in shown.stdout and "16 of 16 MPS clients" in shown.stdout
    served = {json.loads(simulated.api().predict("client", b""))["pid"] for _ in range(32)}
    assert served <= living and len(served) > 1
    simulated.api().scale("client", "1.0", 14)
    assert eventually(lambda: len(simulated.workers()) == 14, 30)
    assert simulated.ts_mps("stop").returncode == 0
    assert nothing_left(simulated)


class TestExclusive:
    """The compute mode is set for the time that MPS runs, and put back on every way out."""

    def mode(self, serving: Serving) -> int:
        path = Path(serving.environ["SIM_NVML_MODES"])
        return json.loads(path.read_text())[FIRST] if path.exists() else 0

    def begin(self, serving: Serving, handler: str = CLIENT, **environ: str) -> subprocess.CompletedProcess[str]:
        serving.archive("client", handler)
        return serving.start("--models", "client.mar", "--exclusive", **environ)

    def test_a_stop_puts_it_back(self, simulated):
        started = self.begin(simulated)
        assert started.returncode == 0, started.stderr
        assert self.mode(simulated) == 3
        assert simulated.ts_mps("stop").returncode == 0
        assert self.mode(simulated) == 0
        assert nothing_left(simulated)

    @pytest.mark.parametrize(("fault", "code"), [({"SIM_MPS_START_FAILS": "1"}, 5), ({}, 6)])
    def test_a_failed_start_puts_it_back(self, simulated, fault, code):
        failed = self.begin(simulated, ECHO, **fault)
        assert failed.returncode == code, failed.stderr
        assert json.loads(Path(simulated.environ["SIM_NVML_MODES"]).read_text()) == {FIRST: 0}, "set and put back"
        assert nothing_left(simulated)

    def test_a_stop_after_kill_9_of_the_guardian_puts_it_back(self, simulated):
        assert self.begin(simulated).returncode == 0
        os.kill(simulated.state().guardian.pid, signal.SIGKILL)
        assert self.mode(simulated) == 3
        stopped = simulated.ts_mps("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert self.mode(simulated) == 0
        assert nothing_left(simulated)

    def test_without_permission_nothing_is_started(self, simulated):
        refused = self.begin(simulated, SIM_NVML_NO_PERMISSION="1")
        assert refused.returncode == 5
        assert "could not be set to compute mode EXCLUSIVE_PROCESS: it needs root" in refused.stderr
        assert nothing_left(simulated)


class TestKilled:
    def test_guardian(self, simulated):
        simulated.archive("client", CLIENT, workers=2)
        assert simulated.start("--models", "client.mar").returncode == 0
        daemon = simulated.state().gpus[0].daemon
        os.kill(simulated.state().guardian.pid, signal.SIGKILL)
        status = simulated.ts_mps("status")
        assert status.returncode == 7 and "guardian is gone" in status.stdout
        assert daemon.alive(), "the workers go on serving"
        stopped = simulated.ts_mps("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert not daemon.alive()
        assert nothing_left(simulated)

    def test_daemon(self, simulated):
        simulated.archive("client", CLIENT)
        assert simulated.start("--models", "client.mar").returncode == 0
        psutil.Process(simulated.state().gpus[0].daemon.pid).kill()
        assert eventually(lambda: simulated.status().gpus[0].daemon == "gone", 10)
        status = simulated.ts_mps("status")
        assert status.returncode == 7
        assert "GPU 0: its MPS daemon is gone" in status.stdout
        stopped = simulated.ts_mps("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert nothing_left(simulated)

    def test_everything(self, simulated):
        simulated.archive("client", CLIENT)
        assert simulated.start("--models", "client.mar").returncode == 0
        simulated.kill_everything()
        assert eventually(lambda: simulated.processes() == [], 10)
        again = simulated.start("--models", "client.mar")
        assert again.returncode == 0, again.stderr
        assert load_state(simulated.paths()).gpus[0].daemon.alive()
        assert simulated.ts_mps("stop").returncode == 0
        assert nothing_left(simulated)
