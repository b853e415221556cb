"""What a worker does between its LOAD message and its handler: environment, daemon, proof."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ts_mps.errors import MpsError
from ts_mps.gpu.inventory import read_inventory
from ts_mps.mps import limits
from ts_mps.mps.control import Control, DaemonNotFound
from ts_mps.mps.daemon import acquire
from ts_mps.paths import Home
from ts_mps.plan.model import PlannedGpu, Slot
from ts_mps.torchserve.attach import NotAClient, environment, prove, share_of, take_share, wait_for_daemon
from ts_mps.worker_records import Share

UUID = "GPU-00000000-0000-4000-8000-000000000000"
GPU = PlannedGpu(0, UUID, "NVIDIA H200", 48, "/pipe")
LIMITED = Slot(0, "m", "1.0", UUID, thread_percentage=12.5, memory_limit="4G", priority=1)


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

    def test_limits(self):
        variables = environment(LIMITED, GPU, Path("/none"))
        assert variables["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "12.5"
        assert variables["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=4G"
        assert variables["CUDA_MPS_CLIENT_PRIORITY"] == "1"
        normal = environment(replace(LIMITED, priority=0), GPU, Path("/none"))
        assert normal["CUDA_MPS_CLIENT_PRIORITY"] == "0", "0 is a wish too, beside a daemon's default of 1"

    def test_without_mps_no_limit_is_set(self):
        variables = environment(LIMITED, PlannedGpu(0, UUID, "NVIDIA H200"), Path("/none"))
        assert not set(variables) & set(limits.CLIENT_VARIABLES)

    def test_a_slots_limits_replace_the_users_and_no_limit_leaves_them(self):
        users = dict(zip(limits.CLIENT_VARIABLES, ("25", "0=1G", "0"), strict=True))
        environ = dict(users)
        take_share(Slot(0, "m", "1.0", UUID), environment(Slot(0, "m", "1.0", UUID), GPU, Path("/none")), environ)
        assert {name: environ[name] for name in users} == users
        take_share(LIMITED, environment(LIMITED, GPU, Path("/none")), environ)
        assert [environ[name] for name in limits.CLIENT_VARIABLES] == ["12.5", "0=4G", "1"]


class TestShareOf:
    CORES = tuple(sorted(os.sched_getaffinity(0)))

    @pytest.fixture
    def cuda(self, monkeypatch):
        """A torch that has used a GPU of which CUDA shows 16 SMs."""
        import torch

        seen = SimpleNamespace(multi_processor_count=16)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: {0: seen}[device])

    def test_what_the_slot_asked_for_is_what_it_got(self, cuda):
        environ = environment(LIMITED, GPU, Path("/none"))
        assert share_of(GPU, environ) == Share(16, 12.5, 4 * 2**30, 1, self.CORES)

    def test_nothing_is_asked_of_a_cuda_that_nobody_uses(self, monkeypatch):
        import torch

        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: pytest.fail("CUDA was used"))
        assert share_of(GPU, {}) == Share(None, None, None, None, self.CORES)
        monkeypatch.delitem(sys.modules, "torch")
        assert share_of(GPU, {}).sms is None and "torch" not in sys.modules

    def test_on_the_cpu_and_without_mps_limits_mean_nothing(self, cuda):
        environ = environment(LIMITED, GPU, Path("/none"))
        assert share_of(None, environ) == Share(None, None, None, None, self.CORES)
        assert share_of(PlannedGpu(0, UUID, "NVIDIA H200"), environ) == Share(16, None, None, None, self.CORES)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("0=4G", 4 << 30),
            ("0=1500M", 1500 << 20),
            ("1=1G,0=512MB", 512 << 20),
            (f"{UUID}=2G", 2 << 30),
            ("0=1G,0=2G", 2 << 30),
            ("1=1G", None),
            ("0=1.5G", None),
            ("0=1024", None),
            ("4G", None),
            ("0=", None),
            ("", None),
        ],
    )
    def test_memory_limits_as_mps_reads_them(self, text, expected):
        assert limits.memory_of({limits.MEMORY_LIMIT: text}, UUID) == expected

    @pytest.mark.parametrize(
        ("text", "expected"), [("50", 50.0), ("12.5", 12.5), ("0", None), ("101", None), ("x", None), ("nan", None)]
    )
    def test_percentages_that_mps_takes(self, text, expected):
        assert limits.percentage_of({limits.THREAD_PERCENTAGE: text}) == expected

    @pytest.mark.parametrize(("text", "expected"), [("0", 0), ("1", 1), ("2", None), ("", None)])
    def test_priorities_that_mps_takes(self, text, expected):
        assert limits.priority_of({limits.PRIORITY: text}) == expected


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
