"""What nvidia-cuda-mps-control does, run against the simulator everywhere and the real program on a GPU.

Where a real answer changes with a driver, this suite says so first; the simulator then follows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from support import eventually, gone, simulated_gpu

from ts_mps.mps.control import (
    Control,
    DaemonNotFound,
    DaemonTimeout,
    UnexpectedAnswer,
    binary_version,
    find_binary,
)

#: A client that works without pause: prints "ready" once it has a context, or the CUDA error that ends it.
BUSY_CLIENT = """
import sys, torch
try:
    x = torch.randn(2048, 2048, device="cuda")
    torch.cuda.synchronize()
    print("ready", flush=True)
    while True:
        x @ x
        torch.cuda.synchronize()
except Exception as error:
    print("died:", error, flush=True)
    sys.stdin.read()
"""


@dataclass
class World:
    """A pipe folder, and the means to start a daemon and clients in it."""

    folder: Path
    environ: Mapping[str, str]
    uuid: str
    real: bool
    clients: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def pipe(self) -> Path:
        return self.folder / "pipe"

    def control(self, timeout: float = 10.0) -> Control:
        return Control(self.pipe, environ=self.environ, timeout=timeout)

    def daemon_environ(self, pipe: Path | None = None) -> dict[str, str]:
        return {
            **self.environ,
            "CUDA_MPS_PIPE_DIRECTORY": str(pipe or self.pipe),
            "CUDA_MPS_LOG_DIRECTORY": str(self.folder / "log"),
            "CUDA_VISIBLE_DEVICES": self.uuid,
        }

    def start(self, pipe: Path | None = None) -> subprocess.CompletedProcess[str]:
        for folder in (pipe or self.pipe, self.folder / "log"):
            folder.mkdir(exist_ok=True)
        binary = find_binary(self.environ)
        assert binary is not None
        return subprocess.run([binary, "-d"], env=self.daemon_environ(pipe), capture_output=True, text=True, timeout=30)

    def daemon(self) -> psutil.Process:
        return psutil.Process(int((self.pipe / "nvidia-cuda-mps-control.pid").read_text()))

    def client(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BUSY_CLIENT] if self.real else ["sleep", "600"]
        process = subprocess.Popen(
            command, env=self.daemon_environ(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.clients.append(process)
        if self.real:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        else:
            (self.pipe / "sim-clients").mkdir(exist_ok=True)
            (self.pipe / "sim-clients" / str(process.pid)).touch()
        return process

    def close(self) -> None:
        for client in self.clients:
            client.kill()
            client.communicate()
        with suppress(OSError, ValueError, psutil.Error):
            self.daemon().resume()
            self.daemon().kill()


@pytest.fixture(params=["simulator", pytest.param("real", marks=pytest.mark.gpu)])
def world(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[World]:
    if request.param == "real":
        import pynvml

        pynvml.nvmlInit()
        uuid = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0))
        pynvml.nvmlShutdown()
        made = World(short_dir, dict(os.environ), uuid, real=True)
    else:
        environ = request.getfixturevalue("simulator")
        made = World(short_dir, environ, str(simulated_gpu()["uuid"]), real=False)
    yield made
    made.close()


@pytest.fixture
def started(world: World) -> World:
    done = world.start()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return world


@pytest.fixture
def served(started: World) -> World:
    control = started.control(30)
    control.start_server(os.getuid())
    (server,) = control.servers()
    assert control.server_status(server) == "ACTIVE"
    return started


def test_version(world: World):
    binary = find_binary(world.environ)
    assert binary is not None
    assert binary_version(binary) >= 11000


def test_no_daemon(world: World):
    control = world.control()
    assert not world.pipe.exists()
    assert not control.answers()
    with pytest.raises(DaemonNotFound):
        control.servers()
    world.pipe.mkdir()
    with pytest.raises(DaemonNotFound):
        control.quit(1)


def test_start_leaves_these_files_and_a_process_of_its_own(started: World):
    assert {path.name for path in started.pipe.iterdir()} >= {
        "control",
        "control_lock",
        "control_privileged",
        "log",
        "nvidia-cuda-mps-control.pid",
    }
    daemon = started.daemon()
    assert Path(daemon.cmdline()[0]).name == "nvidia-cuda-mps-control"
    assert daemon.environ()["CUDA_MPS_PIPE_DIRECTORY"] == str(started.pipe)
    assert os.getsid(daemon.pid) not in (os.getsid(0), 0)
    assert "Control" in (started.folder / "log" / "control.log").read_text()


def test_second_start_is_refused(started: World):
    done = started.start()
    assert done.returncode == 1
    assert done.stdout == "An instance of this daemon is already running\n"
    assert started.control().answers()


def test_before_a_server(started: World):
    control = started.control()
    assert control.answers()
    assert control.servers() == ()
    assert control.processes() == ()
    assert control.all_clients() == ()
    assert control.clients(1) == ()
    assert control.server_status(1) is None
    assert control.devices() == (started.uuid,)
    assert control.default_active_thread_percentage() == 100.0
    with pytest.raises(UnexpectedAnswer) as caught:
        control.terminate_client(1, 2)
    assert caught.value.details == "Server 1 not found\nServer 1 not found!\n1"


@pytest.mark.parametrize("command", ["help", "nonsense 1 2", "", "lspart"])
def test_unknown_commands_are_noticed(started: World, command: str):
    with pytest.raises(UnexpectedAnswer) as caught:
        started.control().ask(command)
    assert caught.value.details == f'Unknown command "{command.partition(" ")[0]}"'


def test_start_server_twice_is_one_server(served: World):
    control = served.control()
    before = control.servers()
    control.start_server(os.getuid())
    assert control.servers() == before
    assert Path(psutil.Process(before[0]).cmdline()[0]).name == "nvidia-cuda-mps-server"
    assert psutil.Process(before[0]).ppid() == served.daemon().pid
    assert control.processes() == ()
    assert control.devices() == (served.uuid,)
    assert control.ask("device_query").count(served.uuid) == 2, "once for the default, once for the server"


def test_clients_are_listed_while_they_live(served: World):
    control = served.control()
    clients = [served.client() for _ in range(3)]
    (server,) = control.servers()
    assert set(control.clients(server)) == {client.pid for client in clients}
    assert control.all_clients() == control.clients(server)
    rows = {row.pid: row for row in control.processes()}
    assert set(rows) == {client.pid for client in clients}
    for client in clients:
        row = rows[client.pid]
        assert (row.server, row.namespace) == (server, Path("/proc/self/ns/pid").stat().st_ino)
        assert served.uuid.startswith(row.device) and len(row.device) >= 12
        assert row.command == client.args[0]
    assert len({row.id for row in rows.values()}) == 3

    clients[0].kill()
    clients[0].wait()
    assert eventually(lambda: clients[0].pid not in control.clients(server))
    assert set(control.clients(server)) == {clients[1].pid, clients[2].pid}


def test_first_client_starts_the_server(started: World):
    client = started.client()
    control = started.control()
    assert eventually(lambda: control.all_clients() == (client.pid,))
    assert [control.server_status(server) for server in control.servers()] == ["ACTIVE"]


def test_terminate_then_kill_spares_the_others(served: World):
    control = served.control()
    target, other = served.client(), served.client()
    (server,) = control.servers()
    control.terminate_client(server, target.pid)
    if served.real:
        assert target.stdout is not None
        assert "terminated by the server" in target.stdout.readline()
    assert set(control.clients(server)) == {target.pid, other.pid}, "it stays listed until its process has exited"
    target.kill()
    target.wait()
    assert eventually(lambda: control.clients(server) == (other.pid,))
    assert other.poll() is None
    assert control.server_status(server) == "ACTIVE"


def test_terminate_of_a_process_that_is_no_client(served: World):
    client = served.client()
    (server,) = served.control().servers()
    with pytest.raises(UnexpectedAnswer) as caught:
        served.control().terminate_client(server, 999999)
    assert caught.value.details == "Invalid process 999999!\n1"
    assert served.control().clients(server) == (client.pid,)


def test_second_terminate_blocks_the_daemon_until_the_client_has_exited(served: World):
    target = served.client()
    control = served.control(timeout=1.0)
    (server,) = control.servers()
    control.terminate_client(server, target.pid)
    with pytest.raises(DaemonTimeout):
        control.terminate_client(server, target.pid)
    with pytest.raises(DaemonTimeout):
        control.servers()
    assert not control.answers()
    target.kill()
    target.wait()
    assert eventually(control.answers, 20)
    assert control.clients(server) == ()


def test_killed_server_is_replaced_for_the_next_client(served: World):
    control = served.control()
    (server,) = control.servers()
    os.kill(server, signal.SIGKILL)
    assert eventually(lambda: server not in control.servers())
    client = served.client()
    assert eventually(lambda: control.all_clients() == (client.pid,))
    assert server not in control.servers()


def test_quit_without_clients(served: World):
    daemon = served.daemon()
    (server,) = served.control().servers()
    asked = time.monotonic()
    served.control().quit(30)
    assert time.monotonic() - asked < 5
    assert eventually(lambda: gone(daemon.pid))
    assert eventually(lambda: gone(server))
    assert not served.control().answers()
    assert not (served.pipe / "nvidia-cuda-mps-control.pid").exists()
    assert not (served.pipe / "log").exists()
    assert (served.pipe / "control").exists()
    assert served.start().returncode == 0, "a new daemon works over the files of the old one"


def test_quit_waits_for_clients_and_then_forces(served: World):
    served.client()
    daemon = served.daemon()
    asked = time.monotonic()
    served.control().quit(1.2)
    assert 1.5 < time.monotonic() - asked < 8, "1.2 s are rounded up to 2"
    assert eventually(lambda: gone(daemon.pid))


def test_stopped_daemon_times_out(started: World):
    control = started.control(timeout=0.5)
    started.daemon().suspend()
    with pytest.raises(DaemonTimeout, match=r"did not answer 'get_server_list' within 0\.5 s"):
        control.servers()
    started.daemon().resume()
    assert eventually(control.answers)


def test_killed_daemon_leaves_files_that_do_not_hinder_the_next(served: World):
    daemon = served.daemon()
    (server,) = served.control().servers()
    daemon.kill()
    assert eventually(lambda: gone(daemon.pid))
    assert eventually(lambda: gone(server))
    assert (served.pipe / "nvidia-cuda-mps-control.pid").read_text() == str(daemon.pid)
    with pytest.raises(DaemonNotFound):
        served.control().servers()
    assert served.start().returncode == 0
    assert served.control().servers() == ()


def test_too_long_a_path_fails_without_a_word(world: World):
    long = world.folder / ("p" * 100)
    done = world.start(long)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    with pytest.raises(DaemonNotFound):
        Control(long, environ=world.environ).servers()
