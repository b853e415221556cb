"""What a worker does between its LOAD message and its handler: environment, daemon, proof."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ts_mps.errors import MpsError
from ts_mps.gpu.inventory import read_inventory
from ts_mps.mps.control import Control, DaemonNotFound
from ts_mps.mps.daemon import acquire
from ts_mps.paths import Home
from ts_mps.plan.model import PlannedGpu, Slot
from ts_mps.torchserve.attach import NotAClient, environment, prove, take_share, wait_for_daemon

UUID = "GPU-00000000-0000-4000-8000-000000000000"
GPU = PlannedGpu(0, UUID, "NVIDIA H200", 48, "/pipe")


class FakeControl:
    """Answers what each look is to see: a state of its server, None for no server, or an error."""

    def __init__(self, *looks: str | MpsError | None) -> None:
        self.looks = list(looks)

    def servers(self) -> tuple[int, ...]:
        look = self.looks[0]
        if isinstance(look, MpsError):
            self.looks.pop(0)
            raise look
        if look is None:
            self.looks.pop(0)
            return ()
        return (462,)

    def server_status(self, server: int) -> str:
        return str(self.looks.pop(0))


class TestEnvironment:
    def test_on_the_cpu_only_threads(self):
        assert environment(Slot(0, "m", "1.0", None, threads=2), None, Path("/none")) == {"OMP_NUM_THREADS": "2"}
        assert environment(Slot(0, "m", "1.0", None, threads=0), None, Path("/none")) == {}

    def test_a_client_sees_its_gpu_and_its_daemon(self):
        assert environment(Slot(0, "m", "1.0", UUID, threads=2), GPU, Path("/none")) == {
            "OMP_NUM_THREADS": "2",
            "CUDA_VISIBLE_DEVICES": UUID,
            "CUDA_MPS_PIPE_DIRECTORY": "/pipe",
        }

    def test_without_mps_it_is_pointed_at_a_folder_without_a_daemon(self):
        gpu = PlannedGpu(0, UUID, "NVIDIA H200")
        variables = environment(Slot(0, "m", "1.0", UUID), gpu, Path("/none"))
        assert variables["CUDA_MPS_PIPE_DIRECTORY"] == "/none"

    def test_shares(self):
        slot = Slot(0, "m", "1.0", UUID, thread_percentage=12.5, memory_limit="4G")
        variables = environment(slot, GPU, Path("/none"))
        assert variables["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "12.5"
        assert variables["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=4G"


class TestTakeShare:
    def test_it_changes_this_process(self):
        """In a process of its own, since it is for life."""
        core = min(os.sched_getaffinity(0))
        script = f"""
import json, os, torch
from ts_mps.plan.model import Slot
from ts_mps.torchserve.attach import take_share
take_share(Slot(0, "m", "1.0", None, threads=1, cores=({core},)), {{"A_VARIABLE": "x"}})
print(json.dumps([torch.get_num_threads(), sorted(os.sched_getaffinity(0)), os.environ["A_VARIABLE"]]))
"""
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "OMP_NUM_THREADS": "2"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == [1, [core], "x"]

    def test_no_threads_and_no_cores_leave_both_alone(self, monkeypatch):
        monkeypatch.setattr(os, "sched_setaffinity", lambda *_: pytest.fail("the affinity was touched"))
        environ = {"OMP_NUM_THREADS": "7"}
        take_share(Slot(0, "m", "1.0", None, threads=0), {}, environ)
        assert environ == {"OMP_NUM_THREADS": "7"}


class TestWaitForDaemon:
    @pytest.mark.parametrize("state", ["ACTIVE", "INITIALIZING", None], ids=str)
    def test_a_daemon_that_takes_clients(self, state):
        wait_for_daemon(GPU, FakeControl(state), sleep=lambda _: pytest.fail("it waited"))

    def test_it_waits_for_one_that_comes_back(self):
        control = FakeControl(DaemonNotFound("No daemon."), "FAULT", "FAULT", "ACTIVE")
        waits: list[float] = []
        wait_for_daemon(GPU, control, sleep=waits.append)
        assert len(waits) == 3 and control.looks == []

    def test_the_sentence_names_gpu_time_and_trouble(self):
        control = FakeControl(DaemonNotFound("No MPS control daemon listens at /pipe."))
        with pytest.raises(MpsError) as error:
            wait_for_daemon(GPU, control, seconds=-1.0)
        assert GPU.label in error.value.what and "No MPS control daemon listens at /pipe." in error.value.what
        assert "without MPS" in error.value.remedy
        with pytest.raises(MpsError, match="in FAULT"):
            wait_for_daemon(GPU, FakeControl("FAULT"), seconds=-1.0)


class TestProve:
    @pytest.fixture
    def control(self, short_dir, simulator):
        """The simulated daemon of a GPU."""
        gpu = read_inventory().gpus[0]
        lease = acquire(gpu, Home(short_dir).gpu(gpu.uuid), "test", environ=simulator)
        yield Control(Path(lease.daemon.pipe), environ=simulator)
        (Path(lease.daemon.pipe) / "sim-clients" / str(os.getpid())).unlink(missing_ok=True)
        lease.release(5.0)

    def register(self, control: Control) -> None:
        folder = control.pipe / "sim-clients"
        folder.mkdir(exist_ok=True)
        (folder / str(os.getpid())).touch()

    def test_a_client_is_found_without_touching_cuda(self, control, monkeypatch):
        import torch

        monkeypatch.setattr(torch, "zeros", lambda *_, **__: pytest.fail("CUDA was used"))
        self.register(control)
        proof = prove(GPU, control, "m")
        assert proof.server in control.servers()
        assert os.getpid() in control.clients(proof.server)

    def test_a_handler_that_has_not_used_cuda_gets_its_context_here(self, control, monkeypatch):
        import torch

        used: list[object] = []

        def zeros(size: int, *, device: str) -> None:
            used.append(device)
            self.register(control)

        monkeypatch.setattr(torch, "zeros", zeros)
        assert prove(GPU, control, "m").server in control.servers()
        assert used == ["cuda"]

    def test_a_client_that_is_listed_late_is_waited_for(self, control, monkeypatch):
        import torch

        late = threading.Timer(0.4, self.register, [control])
        monkeypatch.setattr(torch, "zeros", lambda *_, **__: late.start())
        assert prove(GPU, control, "m").server in control.servers()

    def test_a_process_past_mps_is_found_out(self, control, monkeypatch):
        import torch

        monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
        with pytest.raises(NotAClient) as error:
            prove(GPU, control, "m", seconds=0.3)
        for part in ("model m", str(os.getpid()), GPU.label, "/pipe", "without MPS"):
            assert part in error.value.what
        assert "CUDA_MPS_PIPE_DIRECTORY" in error.value.remedy
