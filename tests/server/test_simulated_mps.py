"""Instances with MPS on simulated GPUs: the real TorchServe and command line, NVIDIA's programs played by stand-ins.

A handler here becomes an MPS client through the simulator's side door instead of through CUDA.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from serving import BROKEN, ECHO
from support import CONTROL, eventually, mps_processes, simulated_gpu

from ts_mps.files import locked
from ts_mps.gpu.inventory import read_inventory
from ts_mps.mps.control import Control
from ts_mps.torchserve.client import ApiError
from ts_mps.torchserve.failures import failures

#: Becomes a client while it loads, and notes what it was given in a file of its pid.
CLIENT = """
import json, os
from pathlib import Path

class Client:
    def initialize(self, context):
        names = ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY")
        seen = {**{name: os.environ.get(name) for name in names}, "gpu_id": context.system_properties["gpu_id"]}
        (Path(os.environ["SEEN"]) / str(os.getpid())).write_text(json.dumps(seen))
        clients = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]) / "sim-clients"
        clients.mkdir(exist_ok=True)
        (clients / str(os.getpid())).touch()

    def handle(self, data, context):
        return [str(os.getpid())] * len(data)
"""


@pytest.fixture
def mps(simulated):
    """`ts-mps` on two simulated H200, with one archive of the handler above."""
    simulated.environ["SIM_GPUS"] = json.dumps([simulated_gpu(0), simulated_gpu(1)])
    # Workers then leave torch's threads alone and need not import torch.
    simulated.environ["OMP_NUM_THREADS"] = "1"
    simulated.environ["SEEN"] = str(simulated.folder / "seen")
    (simulated.folder / "seen").mkdir()
    return simulated


UUIDS = [str(simulated_gpu(index)["uuid"]) for index in range(2)]


def start(mps, *arguments: str, **environ: str) -> None:
    done = mps.start("--models", "client.mar", *arguments, **environ)
    assert done.returncode == 0, done.stderr


def seen(mps, pid: int) -> dict[str, object]:
    return json.loads((mps.folder / "seen" / str(pid)).read_text())


def daemons(mps) -> list[psutil.Process]:
    return [process for process in mps_processes(mps.folder) if Path(process.cmdline()[0]).name == CONTROL]


def left(mps) -> list[str]:
    return mps.left() + [f"process {process.pid}" for process in mps_processes(mps.folder)]


def compute_mode(mps, index: int = 0) -> int:
    """As NVML reads it: 0 is DEFAULT, 3 is EXCLUSIVE_PROCESS."""
    file = mps.folder / "compute-modes.json"
    return json.loads(file.read_text()).get(UUIDS[index], 0) if file.exists() else 0


def predict(mps, name: str = "default") -> int:
    return int(mps.api(name).predict("client", b""))


class TestPlacement:
    def test_every_worker_is_a_proven_client_on_its_planned_gpu(self, mps):
        mps.archive("client", CLIENT, workers=4)
        start(mps)
        records = mps.workers()
        assert [record.slot.gpu for record in records] == [UUIDS[0], UUIDS[1], UUIDS[0], UUIDS[1]]
        for record in records:
            pipe = mps.home.gpu(record.slot.gpu).pipe
            assert record.planned and record.state == "ready"
            assert record.pid in Control(pipe).clients(record.proof.server)
            assert seen(mps, record.pid) == {
                "CUDA_VISIBLE_DEVICES": record.slot.gpu,
                "CUDA_MPS_PIPE_DIRECTORY": str(pipe),
                "gpu_id": 0,
            }
        assert sorted(daemon.environ()["CUDA_VISIBLE_DEVICES"] for daemon in daemons(mps)) == UUIDS
        status = json.loads((asked := mps.ts_mps("status", "--json")).stdout)
        assert asked.returncode == 0 and status["as_planned"] and status["mps"] == "on"
        assert [(gpu["daemon"], gpu["server"], gpu["clients"]) for gpu in status["gpus"]] == [
            ("running", "ACTIVE", 2)
        ] * 2
        assert [worker["attached"] for worker in status["workers"]] == [True] * 4
        stopped = mps.ts_mps("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert left(mps) == []
        assert not any(mps.home.gpu(uuid).pipe.exists() for uuid in UUIDS)

    def test_a_worker_that_runs_past_mps_ends_the_start(self, mps):
        """There is no CUDA here, so the context that the proof opens for it fails; its message is what is told."""
        mps.archive("echo", ECHO)
        done = mps.start("--models", "echo.mar")
        assert done.returncode == 6, done.stderr
        assert "A worker of model echo (version 1.0) did not load" in done.stderr and "CUDA" in done.stderr
        assert "in prove" in done.stderr, "the worker's own traceback"
        assert eventually(lambda: left(mps) == []), left(mps)

    @pytest.mark.parametrize("visible", ["1", UUIDS[1], UUIDS[1][:12]], ids=["index", "UUID", "prefix"])
    def test_cuda_visible_devices_in_every_form(self, mps, visible):
        mps.archive("client", CLIENT, workers=2)
        start(mps, CUDA_VISIBLE_DEVICES=visible)
        assert [record.slot.gpu for record in mps.workers()] == [UUIDS[1]] * 2
        assert all(seen(mps, record.pid)["CUDA_VISIBLE_DEVICES"] == UUIDS[1] for record in mps.workers())
        assert len(daemons(mps)) == 1

    def test_an_empty_cuda_visible_devices_means_the_cpu(self, mps):
        mps.archive("echo", ECHO)
        done = mps.start("--models", "echo.mar", CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 0, done.stderr
        assert "MPS is off: CUDA_VISIBLE_DEVICES or number_of_gpu leaves no GPU." in done.stdout
        assert [record.slot.gpu for record in mps.workers()] == [None]
        assert mps_processes(mps.folder) == []

    def test_number_of_gpu(self, mps):
        mps.config = mps.write_config(number_of_gpu=1)
        mps.archive("client", CLIENT, workers=2)
        start(mps)
        assert [record.slot.gpu for record in mps.workers()] == [UUIDS[0]] * 2
        assert len(daemons(mps)) == 1

    def test_device_ids(self, mps):
        mps.archive("client", CLIENT, workers=2, deviceIds=[1])
        start(mps)
        assert [record.slot.gpu for record in mps.workers()] == [UUIDS[1]] * 2


class TestSharing:
    def test_a_daemon_of_the_users_is_adopted_and_survives(self, mps):
        pipe, log = mps.folder / "theirs", mps.folder / "theirs-log"
        for folder in (pipe, log):
            folder.mkdir()
        theirs = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_MPS_LOG_DIRECTORY": str(log)}
        subprocess.run([CONTROL, "-d"], env={**theirs, "CUDA_VISIBLE_DEVICES": UUIDS[0]}, cwd="/", check=True)
        (daemon,) = daemons(mps)
        mps.archive("client", CLIENT)
        start(mps, CUDA_MPS_PIPE_DIRECTORY=str(pipe), CUDA_VISIBLE_DEVICES="0")
        assert daemons(mps) == [daemon]
        (gpu,) = mps.status().gpus
        assert (gpu.daemon, gpu.pipe, gpu.clients) == ("adopted", str(pipe), 1)
        (record,) = mps.workers()
        assert record.proof is not None and seen(mps, record.pid)["CUDA_MPS_PIPE_DIRECTORY"] == str(pipe)
        assert mps.ts_mps("stop").returncode == 0
        assert daemons(mps) == [daemon] and Control(pipe).answers()
        assert [path for path in mps.left() if not path.startswith(str(pipe))] == []

    def test_two_instances_share_a_daemon_and_the_last_one_out_stops_it(self, mps):
        mps.archive("client", CLIENT)
        start(mps, CUDA_VISIBLE_DEVICES="0")
        mps.config = mps.write_config("second.properties")
        start(mps, "--name", "second", "--disable-token-auth", CUDA_VISIBLE_DEVICES="0")
        (daemon,) = daemons(mps)
        assert [mps.state(name).gpus[0].daemon.pid for name in ("default", "second")] == [daemon.pid] * 2
        assert mps.status().gpus[0].clients == 2
        assert {mps.workers(name)[0].seat for name in ("default", "second")} == {0, 1}
        assert mps.ts_mps("stop").returncode == 0
        assert daemons(mps) == [daemon] and mps.status("second").as_planned
        assert predict(mps, "second") == mps.workers("second")[0].pid
        assert mps.ts_mps("stop", "--name", "second").returncode == 0
        assert left(mps) == []


class TestCap:
    @pytest.fixture
    def old_gpu(self, mps):
        """One GPU of a kind whose MPS server takes 16 clients."""
        mps.environ["SIM_GPUS"] = json.dumps([simulated_gpu(compute_capability=[6, 0])])
        return mps

    def test_more_than_the_cap_is_refused_before_anything_starts(self, old_gpu):
        old_gpu.archive("client", CLIENT, workers=17)
        done = old_gpu.start("--models", "client.mar")
        assert done.returncode == 4, done.stderr
        assert "17 workers" in done.stderr and "16 clients" in done.stderr
        assert old_gpu.state() is None and left(old_gpu) == []

    def test_scaling_past_the_cap_leaves_exactly_as_many_as_fit(self, old_gpu):
        old_gpu.archive("client", CLIENT, workers=14)
        start(old_gpu)
        planned = {record.pid for record in old_gpu.workers()}
        assert len(planned) == 14
        old_gpu.api().scale("client", "1.0", 18)

        def ready() -> set[int]:
            return {record.pid for record in old_gpu.workers() if record.state == "ready"}

        assert eventually(lambda: len(ready()) == 16 and len(failures(old_gpu.paths())) >= 2, 120)
        sixteen = ready()
        assert planned < sixteen
        told = old_gpu.ts_mps("status").stdout
        for part in (
            "GPU 0 (NVIDIA H200, GPU-00000000) already has 16 of 16 MPS clients",
            "16 x client of instance default",
            "PUT /models/client?min_worker=N&max_worker=N",
            "16 of 16",
        ):
            assert part in failures(old_gpu.paths())[0].what or part == "16 of 16"
            assert part in told
        refused = len(failures(old_gpu.paths()))
        assert eventually(lambda: len(failures(old_gpu.paths())) > refused, 60), "TorchServe tries again"
        assert ready() == sixteen, "and the sixteen live on"
        assert predict(old_gpu) in sixteen
        old_gpu.api().scale("client", "1.0", 15)

        def fifteen() -> bool:
            # TorchServe drops three of its eighteen threads; the refused ones among the others come up in their place,
            # and one that is dropped may try once more, so their number may never be seen at fifteen.
            now = ready()
            return len(sixteen & now) <= 15 <= len(now)

        assert eventually(fifteen, 60)
        assert old_gpu.ts_mps("stop").returncode == 0
        assert left(old_gpu) == []


class TestExclusive:
    def test_a_stop_puts_the_mode_back(self, mps):
        mps.archive("client", CLIENT, workers=2)
        start(mps, "--exclusive")
        assert [compute_mode(mps, index) for index in range(2)] == [3, 3]
        assert mps.ts_mps("stop").returncode == 0
        assert [compute_mode(mps, index) for index in range(2)] == [0, 0]

    def test_a_stop_that_cannot_put_it_back_says_so_and_a_second_one_does(self, mps):
        """The guardian does the work, so its findings must reach whoever asked for the stop."""
        mps.archive("client", CLIENT)
        start(mps, "--exclusive", CUDA_VISIBLE_DEVICES="0")
        modes = mps.folder / "compute-modes.json"
        kept = modes.rename(mps.folder / "kept.json")
        modes.mkdir()  # NVML fails from now on
        stopped = mps.ts_mps("stop")
        assert stopped.returncode == 1, stopped.stderr
        assert "not everything is gone" in stopped.stderr and "compute-modes.json" in stopped.stderr
        assert left(mps) == []
        modes.rmdir()
        kept.rename(modes)
        assert mps.ts_mps("stop").returncode == 0
        assert compute_mode(mps) == 0

    def test_a_failed_start_puts_the_mode_back(self, mps):
        mps.archive("broken", BROKEN)
        assert mps.start("--models", "broken.mar", "--exclusive").returncode == 6
        assert json.loads((mps.folder / "compute-modes.json").read_text()) == {UUIDS[0]: 0, UUIDS[1]: 0}
        assert eventually(lambda: left(mps) == []), left(mps)

    def test_after_kill_9_of_the_guardian_a_stop_leaves_no_daemon_and_the_old_mode(self, mps):
        mps.archive("client", CLIENT, workers=2)
        start(mps, "--exclusive")
        os.kill(mps.state().guardian.pid, signal.SIGKILL)
        assert eventually(lambda: mps.ts_mps("status").returncode == 7)
        assert len(daemons(mps)) == 2 and compute_mode(mps) == 3
        stopped = mps.ts_mps("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert left(mps) == []
        assert [compute_mode(mps, index) for index in range(2)] == [0, 0]
        assert [gpu.compute_mode for gpu in read_inventory().gpus] == ["Default"]


class TestDeadDaemon:
    def test_while_it_cannot_be_brought_back_no_worker_runs_without_mps(self, mps):
        mps.archive("client", CLIENT)
        start(mps, CUDA_VISIBLE_DEVICES="0")
        files = mps.home.gpu(UUIDS[0])
        with locked(files.lock):  # who starts or stops a daemon holds it, so nobody brings this one back
            daemons(mps)[0].kill()
            assert eventually(lambda: "its MPS daemon is gone" in mps.ts_mps("status").stdout, 10)
            (first,) = mps.workers()
            os.kill(first.pid, signal.SIGKILL)
            assert eventually(lambda: [w.pid for w in mps.workers()] not in ([], [first.pid]), 30)
            (successor,) = mps.workers()
            assert (successor.state, successor.slot) == ("loading", first.slot)
            with pytest.raises(ApiError):
                mps.state().endpoints.api(timeout=1.0).predict("client", b"")
            assert mps.workers()[0].state == "loading"
            assert not (mps.folder / "seen" / str(successor.pid)).exists(), "the handler has not been loaded"
        assert eventually(lambda: [(w.pid, w.state) for w in mps.workers()] == [(successor.pid, "ready")], 30)
        assert mps.workers()[0].proof is not None
        assert eventually(lambda: mps.ts_mps("status").returncode == 0, 30)
        assert mps.ts_mps("stop").returncode == 0
        assert left(mps) == []

    def test_a_stop_cleans_up_beside_a_waiting_worker(self, mps):
        mps.archive("client", CLIENT)
        start(mps, CUDA_VISIBLE_DEVICES="0")
        (first,) = mps.workers()
        daemons(mps)[0].kill()
        os.kill(first.pid, signal.SIGKILL)
        assert eventually(lambda: [w.pid for w in mps.workers()] not in ([], [first.pid]), 30)
        stopped = mps.ts_mps("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert left(mps) == []
