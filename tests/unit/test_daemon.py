"""The life of a daemon and its leases, against the simulated control program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support import eventually, gone, mps_processes, simulated_gpu

from ts_mps.errors import MpsError
from ts_mps.files import is_locked
from ts_mps.gpu.inventory import Gpu, read_inventory
from ts_mps.mps import daemon, process
from ts_mps.mps.control import Control, DaemonNotFound, DaemonTimeout, binary_version
from ts_mps.mps.daemon import (
    Lease,
    acquire,
    adopt,
    daemon_alive,
    release_left_behind,
    terminate_and_kill,
)
from ts_mps.mps.limits import CLIENT_VARIABLES
from ts_mps.paths import GpuPaths, Home

Acquire = Callable[..., Lease]

#: A guardian in a process of its own: takes a lease, says so, and waits to be killed.
GUARDIAN = """
import os, sys, time
from pathlib import Path
from ts_mps.gpu.inventory import read_inventory
from ts_mps.mps.daemon import acquire
from ts_mps.paths import Home
home, instance, exclusive = sys.argv[1:]
gpu = read_inventory().gpus[0]
lease = acquire(
    gpu, Home(Path(home)).gpu(gpu.uuid), instance, environ=os.environ, exclusive=exclusive == "True"
)
print(lease.daemon.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def gpu(simulator: dict[str, str]) -> Gpu:
    return read_inventory().gpus[0]


@pytest.fixture
def paths(short_dir: Path, gpu: Gpu) -> GpuPaths:
    return Home(short_dir).gpu(gpu.uuid)


@pytest.fixture
def environ(simulator: dict[str, str]) -> dict[str, str]:
    return simulator


@pytest.fixture
def take(gpu: Gpu, paths: GpuPaths, environ: dict[str, str]) -> Acquire:
    def acquired(instance: str = "default", **more: object) -> Lease:
        return acquire(gpu, paths, instance, **{"environ": environ, "timeout_s": 10.0, **more})

    return acquired


@pytest.fixture
def client(paths: GpuPaths) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts processes that are clients of the daemon in ``paths.pipe``."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        one = subprocess.Popen(["sleep", "600"])
        started.append(one)
        folder = paths.pipe / "sim-clients"
        folder.mkdir(exist_ok=True)
        (folder / str(one.pid)).touch()
        return one

    yield start
    for one in started:
        one.kill()
        one.wait()


def killed_guardian(home: Path, environ: dict[str, str], instance: str, *, exclusive: bool = False) -> int:
    """Let a guardian take a lease, kill it with SIGKILL, and return the pid of the daemon that it left."""
    command = [sys.executable, "-c", GUARDIAN, str(home), instance, str(exclusive)]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as guardian:
        assert guardian.stdout is not None
        daemon = int(guardian.stdout.readline())
        guardian.kill()
    return daemon


def nothing_left(short_dir: Path, paths: GpuPaths) -> bool:
    return not mps_processes(short_dir) and not paths.pipe.exists() and not list(paths.leases.iterdir())


# --- one instance


def test_acquire_brings_up_a_daemon_for_one_gpu(take: Acquire, gpu: Gpu, paths: GpuPaths, environ: dict[str, str]):
    daemon = take().daemon
    assert (daemon.uuid, daemon.pipe, daemon.log) == (gpu.uuid, str(paths.pipe), str(paths.log))
    assert (daemon.version, daemon.cap, daemon.adopted) == (13000, 48, False)
    control = Control(paths.pipe, environ=environ)
    assert control.devices() == (gpu.uuid,)
    assert [control.server_status(server) for server in control.servers()] == ["ACTIVE"]
    started_with = psutil.Process(daemon.pid).environ()
    assert started_with["CUDA_VISIBLE_DEVICES"] == gpu.uuid
    assert started_with["CUDA_MPS_LOG_DIRECTORY"] == str(paths.log)
    assert started_with["CUDA_MPS_PROTOCOL_VERSION"] == "2"
    assert os.getsid(daemon.pid) != os.getsid(0)
    assert {path.stat().st_mode & 0o777 for path in (paths.pipe, paths.log, paths.leases)} == {0o700}
    assert is_locked(paths.leases / "default")
    assert daemon_alive(daemon)


def test_one_users_limits_do_not_bound_the_daemon_of_all(take: Acquire, environ: dict[str, str]):
    environ.update(dict.fromkeys(CLIENT_VARIABLES, "1"))
    started_with = psutil.Process(take(environ=environ).daemon.pid).environ()
    assert "CUDA_MPS_PIPE_DIRECTORY" in started_with and not set(started_with) & set(CLIENT_VARIABLES)


def test_release_leaves_nothing(take: Acquire, gpu: Gpu, short_dir: Path, paths: GpuPaths):
    lease = take()
    assert lease.release() == f"The MPS daemon of {gpu.uuid} was stopped."
    assert nothing_left(short_dir, paths)
    assert not daemon_alive(lease.daemon)
    assert lease.release() == f"The MPS daemon of {gpu.uuid} had ended before."


@pytest.mark.parametrize(("connections", "cap"), [("2", 60), ("8", 48)])
def test_cap_by_version(
    take: Acquire, environ: dict[str, str], connections: str, cap: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SIM_MPS_VERSION", "13010")
    environ["CUDA_DEVICE_MAX_CONNECTIONS"] = connections
    daemon = take().daemon
    assert (daemon.version, daemon.cap) == (13010, cap)


def test_one_instance_has_one_lease(take: Acquire, gpu: Gpu):
    lease = take()
    with pytest.raises(MpsError, match="Instance 'default' is running") as caught:
        take()
    assert "ts-mps stop --name default" in caught.value.remedy
    assert daemon_alive(lease.daemon)


# --- several instances


def test_last_one_out_stops_the_daemon(take: Acquire, gpu: Gpu, short_dir: Path, paths: GpuPaths):
    one, two = take("one"), take("two")
    assert one.daemon == two.daemon
    assert one.release() == f"The MPS daemon of {gpu.uuid} runs on for the instances: two."
    assert daemon_alive(two.daemon)
    assert two.release() == f"The MPS daemon of {gpu.uuid} was stopped."
    assert nothing_left(short_dir, paths)


def test_clients_of_another_instance_keep_the_daemon(
    take: Acquire, short_dir: Path, paths: GpuPaths, environ: dict[str, str], gpu: Gpu, client
):
    killed_guardian(short_dir, environ, "other")
    worker = client()
    lease = take("mine")
    assert lease.release(timeout_s=0.2) == f"The MPS daemon of {gpu.uuid} runs on for its clients: {worker.pid}."
    assert daemon_alive(lease.daemon)
    worker.kill()
    worker.wait()
    assert release_left_behind(paths, gpu.uuid, "other") == f"The MPS daemon of {gpu.uuid} was stopped."
    assert nothing_left(short_dir, paths)


def test_release_waits_for_clients_that_are_about_to_go(take: Acquire, gpu: Gpu, client):
    lease, worker = take(), client()

    def end() -> None:
        worker.kill()
        worker.wait()

    threading.Timer(0.3, end).start()
    assert lease.release(timeout_s=10) == f"The MPS daemon of {gpu.uuid} was stopped."


def test_instances_that_come_and_go_at_once_never_miss_a_daemon(short_dir: Path, paths: GpuPaths, gpu: Gpu, environ):
    """flock keeps threads apart as it keeps processes apart: each lease opens its own file."""
    problems: list[object] = []

    def come_and_go(instance: str) -> None:
        try:
            for _ in range(3):
                lease = acquire(gpu, paths, instance, environ=environ, timeout_s=10.0)
                if not Control(paths.pipe, environ=environ).servers() or not daemon_alive(lease.daemon):
                    problems.append(f"{instance} has a lease and no daemon")
                lease.release()
        except MpsError as error:
            problems.append((error, error.details))

    threads = [threading.Thread(target=come_and_go, args=(f"i{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert nothing_left(short_dir, paths)


# --- what a killed guardian left


def test_killed_guardian_leaves_its_daemon_to_the_next_start(
    take: Acquire, short_dir: Path, environ: dict[str, str], paths: GpuPaths
):
    left = killed_guardian(short_dir, environ, "default")
    assert not gone(left)
    lease = take()
    assert lease.daemon.pid == left
    lease.release()
    assert nothing_left(short_dir, paths)


def test_release_left_behind(short_dir: Path, environ: dict[str, str], gpu: Gpu, paths: GpuPaths):
    left = killed_guardian(short_dir, environ, "default")
    assert release_left_behind(paths, gpu.uuid, "default") == f"The MPS daemon of {gpu.uuid} was stopped."
    assert gone(left)
    assert nothing_left(short_dir, paths)
    assert release_left_behind(paths, gpu.uuid, "default").endswith("had ended before.")


def test_release_left_behind_refuses_while_the_guardian_lives(take: Acquire, gpu: Gpu, paths: GpuPaths):
    lease = take()
    with pytest.raises(MpsError, match="Instance 'default' is running"):
        release_left_behind(paths, gpu.uuid, "default")
    assert daemon_alive(lease.daemon)


def test_release_left_behind_without_any_folder(gpu: Gpu, paths: GpuPaths):
    assert release_left_behind(paths, gpu.uuid, "x") == f"{gpu.uuid} has no MPS daemon of ts-mps."
    assert not paths.root.exists()


# --- a daemon that dies or hangs


def test_killed_daemon_is_noticed_and_brought_back(take: Acquire, paths: GpuPaths):
    lease = take()
    before = lease.daemon
    os.kill(before.pid, signal.SIGKILL)
    assert eventually(lambda: not daemon_alive(before))
    assert (paths.pipe / "nvidia-cuda-mps-control.pid").exists(), "stale files are part of the case"
    after = lease.ensure()
    assert after == lease.daemon == replace(before, pid=after.pid)
    assert daemon_alive(after) and not daemon_alive(before)
    lease.release()


def test_ensure_keeps_a_daemon_that_another_instance_brought_back(take: Acquire):
    one, two = take("one"), take("two")
    os.kill(one.daemon.pid, signal.SIGKILL)
    assert one.ensure() == two.ensure()
    assert one.ensure().pid == two.daemon.pid


def test_ensure_replaces_a_daemon_that_hangs(take: Acquire):
    lease = take()
    before = lease.daemon
    psutil.Process(before.pid).suspend()
    assert daemon_alive(before), "only asking it tells"
    after = lease.ensure(timeout_s=1.0)
    assert after.pid != before.pid and gone(before.pid)


def test_ensure_starts_no_daemon_that_nobody_would_end(take: Acquire):
    """A repair that waited for the lock, while its instance was taken down."""
    lease = take()
    before = lease.daemon
    lease.release()
    with pytest.raises(MpsError, match="let go"):
        lease.ensure()
    assert gone(before.pid) and not daemon_alive(before)


def test_a_server_in_fault_will_do_for_who_is_to_end_its_clients(take: Acquire, paths: GpuPaths, client):
    lease = take()
    victim = client()
    (paths.pipe / "sim-fault").write_text(str(victim.pid))
    with pytest.raises(MpsError, match=r"did not become ACTIVE.*FAULT"):
        take("two", timeout_s=2.0)
    before = lease.daemon
    assert lease.ensure(timeout_s=2.0) == before
    assert take("three", timeout_s=2.0, taken_over=True).daemon.pid == before.pid


def test_a_lock_that_is_never_let_go_of_is_named_and_not_waited_for(take: Acquire, paths: GpuPaths, monkeypatch):
    monkeypatch.setattr(daemon, "LOCK_S", 0.2)
    lease = take()
    holding = "import sys, time; from ts_mps.files import try_lock; from pathlib import Path;"
    holding += "try_lock(Path(sys.argv[1])); print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", holding, paths.lock], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        began = time.monotonic()
        for attempt in (lease.ensure, lease.release, lambda: take("two")):
            with pytest.raises(MpsError, match=f"Process {holder.pid} has held .* for 0.2 s"):
                attempt()
        assert time.monotonic() - began < 10
        holder.kill()
    assert "was stopped" in lease.release()


def test_release_of_a_dead_daemon_clears_its_files(take: Acquire, gpu: Gpu, short_dir: Path, paths: GpuPaths):
    lease = take()
    os.kill(lease.daemon.pid, signal.SIGKILL)
    assert eventually(lambda: gone(lease.daemon.pid))
    assert lease.release() == f"The MPS daemon of {gpu.uuid} had ended before."
    assert nothing_left(short_dir, paths)


def test_release_kills_a_daemon_that_hangs(
    take: Acquire, gpu: Gpu, short_dir: Path, paths: GpuPaths, monkeypatch: pytest.MonkeyPatch
):
    lease = take()
    psutil.Process(lease.daemon.pid).suspend()
    monkeypatch.setattr(process, "Control", lambda pipe, environ: Control(pipe, environ=environ, timeout=0.5))
    assert lease.release() == f"The MPS daemon of {gpu.uuid} did not answer and was killed."
    assert nothing_left(short_dir, paths)


def test_acquire_replaces_a_hung_daemon_that_nobody_holds(short_dir: Path, environ: dict[str, str], take: Acquire):
    left = killed_guardian(short_dir, environ, "default")
    psutil.Process(left).suspend()
    lease = take(timeout_s=1.0)
    assert lease.daemon.pid != left and gone(left)


def test_acquire_leaves_a_hung_daemon_to_the_instance_that_holds_it(take: Acquire, gpu: Gpu):
    one = take("one")
    psutil.Process(one.daemon.pid).suspend()
    with pytest.raises(MpsError, match=r"did not answer 'get_server_list' within 0\.5 s"):
        take("two", timeout_s=0.5)
    assert not gone(one.daemon.pid)


@pytest.mark.parametrize("content", ["", "no number", "1", "4194999", "self"])
def test_stale_or_foreign_pid_files_are_seen_through(take: Acquire, paths: GpuPaths, content: str):
    paths.pipe.mkdir(parents=True)
    (paths.pipe / "nvidia-cuda-mps-control.pid").write_text(str(os.getpid()) if content == "self" else content)
    assert process.find(paths.pipe) is None
    lease = take()
    assert daemon_alive(lease.daemon)


def test_daemon_of_another_folder_is_not_ours(take: Acquire, short_dir: Path):
    lease = take()
    elsewhere = short_dir / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "nvidia-cuda-mps-control.pid").write_text(str(lease.daemon.pid))
    assert process.find(elsewhere) is None
    assert not daemon_alive(replace(lease.daemon, pipe=str(elsewhere)))


# --- starts that fail


def test_control_program_missing(take: Acquire, environ: dict[str, str], short_dir: Path):
    environ["PATH"] = str(short_dir)
    with pytest.raises(MpsError) as caught:
        take()
    assert caught.value.what == "The MPS control program nvidia-cuda-mps-control was not found on PATH."
    assert caught.value.remedy


def test_failed_start_is_rolled_back(
    take: Acquire, gpu: Gpu, environ: dict[str, str], short_dir: Path, paths: GpuPaths
):
    environ["SIM_MPS_START_FAILS"] = "1"
    with pytest.raises(MpsError) as caught:
        take()
    assert caught.value.what.startswith(f"MPS could not be started on GPU 0 ({gpu.uuid}): ")
    assert caught.value.what.endswith("-d' ended with status 1.")
    assert str(paths.log) in caught.value.remedy
    assert nothing_left(short_dir, paths)
    del environ["SIM_MPS_START_FAILS"]
    take().release()


def test_daemon_that_never_answers_is_rolled_back(
    take: Acquire, gpu: Gpu, environ: dict[str, str], short_dir: Path, paths: GpuPaths
):
    environ["SIM_MPS_NO_ANSWER"] = "1"
    began = time.monotonic()
    with pytest.raises(MpsError, match=r"did not answer .* within 2 s") as caught:
        take(timeout_s=2.0)
    assert time.monotonic() - began < 15
    assert "binary version: 13000" in caught.value.details, "the last lines of control.log"
    assert nothing_left(short_dir, paths)


def test_server_that_never_becomes_active_is_rolled_back(
    take: Acquire, short_dir: Path, paths: GpuPaths, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Control, "server_status", lambda self, server: "INITIALIZING")
    with pytest.raises(MpsError, match=r"did not become ACTIVE within 2 s \(its state: INITIALIZING\)"):
        take(timeout_s=2.0)
    assert nothing_left(short_dir, paths)


def test_failed_start_puts_the_compute_mode_back(take: Acquire, environ: dict[str, str], paths: GpuPaths):
    environ["SIM_MPS_START_FAILS"] = "1"
    with pytest.raises(MpsError):
        take(exclusive=True)
    assert read_inventory().gpus[0].compute_mode == "Default"
    assert not paths.compute_mode.exists()


def test_failure_of_a_second_instance_harms_neither_daemon_nor_mode(take: Acquire, monkeypatch: pytest.MonkeyPatch):
    one = take("one", exclusive=True)
    monkeypatch.setattr(Control, "server_status", lambda self, server: "FAULT")
    with pytest.raises(MpsError, match="FAULT"):
        take("two", exclusive=True, timeout_s=2.0)
    assert daemon_alive(one.daemon)
    assert read_inventory().gpus[0].compute_mode == "Exclusive_Process"


def test_folder_that_cannot_be_made(take: Acquire, paths: GpuPaths):
    paths.root.parent.write_text("in the way")
    with pytest.raises(MpsError, match=r"MPS could not be started on GPU 0 .*: (Not a directory|File exists)"):
        take()


# --- compute mode


def test_exclusive_is_put_back_by_the_last_one_out(take: Acquire):
    one, two = take("one", exclusive=True), take("two", exclusive=True)
    one.release()
    assert read_inventory().gpus[0].compute_mode == "Exclusive_Process"
    two.release()
    assert read_inventory().gpus[0].compute_mode == "Default"


def test_exclusive_is_put_back_after_everything_was_killed(
    short_dir: Path, environ: dict[str, str], gpu: Gpu, paths: GpuPaths
):
    left = killed_guardian(short_dir, environ, "default", exclusive=True)
    os.kill(left, signal.SIGKILL)
    assert eventually(lambda: gone(left))
    assert read_inventory().gpus[0].compute_mode == "Exclusive_Process"
    release_left_behind(paths, gpu.uuid, "default")
    assert read_inventory().gpus[0].compute_mode == "Default"


# --- somebody else's daemon


@pytest.fixture
def foreign(short_dir: Path, environ: dict[str, str]) -> Path:
    """The pipe folder of a daemon that serves both GPUs of the machine and was not started by ts-mps."""
    pipe = short_dir / "foreign"
    pipe.mkdir()
    both = json.dumps([simulated_gpu(0), simulated_gpu(1)])
    subprocess.run(
        ["nvidia-cuda-mps-control", "-d"],
        env={**environ, "SIM_GPUS": both, "CUDA_MPS_PIPE_DIRECTORY": str(pipe)},
        check=True,
    )
    return pipe


def test_adopted_daemon_is_used_and_never_stopped(foreign: Path, gpu: Gpu, environ: dict[str, str]):
    lease = adopt(foreign, gpu, environ=environ)
    assert (lease.daemon.pipe, lease.daemon.adopted, lease.daemon.cap) == (str(foreign), True, 48)
    assert daemon_alive(lease.daemon)
    assert lease.release() == f"The MPS daemon at {foreign} was started by somebody else and runs on."
    assert lease.ensure() == lease.daemon
    assert daemon_alive(lease.daemon)


def test_adopted_daemon_that_has_gone_is_not_started_again(foreign: Path, gpu: Gpu, environ: dict[str, str]):
    lease = adopt(foreign, gpu, environ=environ)
    os.kill(lease.daemon.pid, signal.SIGKILL)
    assert eventually(lambda: not daemon_alive(lease.daemon))
    with pytest.raises(DaemonNotFound):
        lease.ensure()
    assert mps_processes(foreign) == []


def test_adopting_a_daemon_that_does_not_serve_the_gpu(foreign: Path, gpu: Gpu, environ: dict[str, str]):
    other = replace(gpu, uuid=str(simulated_gpu(7)["uuid"]))
    with pytest.raises(MpsError, match=f"serves {gpu.uuid}, .* and not {other.uuid}"):
        adopt(foreign, other, environ=environ)


def test_adopting_nothing(short_dir: Path, gpu: Gpu, environ: dict[str, str]):
    with pytest.raises(DaemonNotFound):
        adopt(short_dir / "nothing", gpu, environ=environ)


def test_adopted_daemon_out_of_sight_is_asked(foreign: Path, gpu: Gpu, environ: dict[str, str]):
    found = process.find(foreign)
    assert found is not None
    (foreign / "nvidia-cuda-mps-control.pid").unlink()
    daemon = adopt(foreign, gpu, environ=environ).daemon
    assert daemon.pid is None
    assert daemon_alive(daemon)
    found.kill()
    assert eventually(lambda: not daemon_alive(daemon))


# --- terminate and kill


def test_terminate_and_kill_clients_and_others(take: Acquire, paths: GpuPaths, client):
    lease = take()
    target, spared, loading = client(), client(), subprocess.Popen(["sleep", "600"])
    terminate_and_kill(Path(lease.daemon.pipe), [target.pid, loading.pid, 4194999])
    assert (target.wait(), loading.wait()) == (-signal.SIGKILL, -signal.SIGKILL)
    log = (paths.log / "control.log").read_text()
    assert log.count(f"Cmd:terminate_client {Control(paths.pipe).servers()[0]} {target.pid}\n") == 1
    assert log.count("terminate_client") == 1
    assert spared.poll() is None
    assert Control(paths.pipe).all_clients() == (spared.pid,)


def test_terminate_and_kill_when_the_daemon_is_gone(take: Acquire, client):
    lease, worker = take(), client()
    os.kill(lease.daemon.pid, signal.SIGKILL)
    terminate_and_kill(Path(lease.daemon.pipe), [worker.pid])
    assert worker.wait() == -signal.SIGKILL


def test_terminate_and_kill_when_the_daemon_hangs_on_the_first(take: Acquire, client, monkeypatch: pytest.MonkeyPatch):
    lease, workers = take(), [client() for _ in range(3)]
    asked = []

    def hang(self: Control, server: int, pid: int) -> None:
        asked.append(pid)
        raise DaemonTimeout("hung")

    monkeypatch.setattr(Control, "terminate_client", hang)
    terminate_and_kill(Path(lease.daemon.pipe), [worker.pid for worker in workers])
    assert [worker.wait() for worker in workers] == [-signal.SIGKILL] * 3
    assert asked == [workers[0].pid], "a timeout per client would take minutes"


# --- the control program itself


def test_program_that_names_no_version(short_dir: Path):
    program = short_dir / "control"
    program.write_text("#!/bin/sh\necho old\n")
    program.chmod(0o755)
    assert binary_version(str(program)) == 0


def test_program_that_cannot_be_run(short_dir: Path):
    program = short_dir / "control"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)
    with pytest.raises(MpsError, match=f"{program} cannot be run"):
        binary_version(str(program))
