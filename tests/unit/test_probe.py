"""The probe of the client cap, with the simulated control program and a stand-in for libcuda."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from support import SIMULATOR, eventually, gone, hear_signals, mps_processes, simulated_gpu

from ts_mps.cli import doctor as doctor_verb
from ts_mps.cli.main import main
from ts_mps.doctor import cap
from ts_mps.errors import MpsError, PreflightError
from ts_mps.files import try_lock
from ts_mps.gpu.inventory import Gpu, read_inventory
from ts_mps.gpu.measured import measured_cap
from ts_mps.mps import search
from ts_mps.mps.daemon import acquire, adopt
from ts_mps.mps.probe import CapProbe, probe_cap
from ts_mps.paths import Home

HOLDER = (sys.executable, str(SIMULATOR / "holder.py"))


@pytest.fixture
def gpu(simulator: dict[str, str]) -> Gpu:
    return read_inventory().gpus[0]


@pytest.fixture
def home(short_dir: Path) -> Home:
    return Home(short_dir)


@pytest.fixture
def probe(gpu: Gpu, home: Home, short_dir: Path):
    """Probe with these variables; afterwards nothing is left, whatever happened."""

    def run(bound: int = 128, of: Gpu = gpu, **environ: str) -> CapProbe:
        return probe_cap(of, home, environ={**os.environ, **environ}, bound=bound, command=HOLDER)

    yield run
    assert mps_processes(short_dir) == []
    assert clients_of(short_dir) == []
    assert not (short_dir / "caps").exists()


def clients_of(folder: Path) -> list[str]:
    """Pids of living holders whose daemon is in the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = str(SIMULATOR / "holder.py").encode() in (entry / "cmdline").read_bytes()
            if ours and str(folder).encode() in (entry / "environ").read_bytes() and not gone(int(entry.name)):
                found.append(entry.name)
        except OSError:
            continue
    return found


def test_the_cap_is_the_number_that_held_before_808(probe):
    found = probe(SIM_CUDA_CLIENTS="7")
    assert (found.held, found.exact, found.control_version, found.connections) == (7, True, 13000, 2)
    assert found.why == "Client 8 was refused with CUDA error 808 (CUDA_ERROR_MPS_MAX_CLIENTS_REACHED)."


def test_clients_have_the_connections_of_workers_and_no_share(probe, monkeypatch):
    seen = []
    really = subprocess.Popen

    def popen(command, **more):
        if tuple(command) == HOLDER:
            seen.append(more["env"])
        return really(command, **more)

    monkeypatch.setattr(subprocess, "Popen", popen)
    shares = {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "10", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=1G"}
    assert probe(SIM_CUDA_CLIENTS="2", CUDA_DEVICE_MAX_CONNECTIONS="4", **shares).connections == 4
    assert len(seen) == 3
    for environ in seen:
        assert environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "4" and not set(shares) & set(environ)
        assert environ["CUDA_VISIBLE_DEVICES"] == simulated_gpu()["uuid"]


def test_a_full_gpu_gives_a_lower_bound_only(probe):
    found = probe(SIM_CUDA_ERROR="4:2")
    assert (found.held, found.exact) == (3, False)
    assert "memory was full before client 4" in found.why


def test_the_search_has_a_bound(probe):
    found = probe(bound=5)
    assert (found.held, found.exact) == (5, False)
    assert "ends at 5 clients" in found.why


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        ("3:999", ["client 3", "error 999 (CUDA_ERROR_UNKNOWN)", "cuDevicePrimaryCtxRetain", "2 contexts were held"]),
        ("2:12345", ["client 2", "12345 (unknown to the driver)"]),
        ("1:2", ["client 1", "CUDA_ERROR_OUT_OF_MEMORY", "0 contexts"]),
        ("1:808", ["client 1", "error 808", "0 contexts"]),
    ],
)
def test_another_error_says_nothing_about_the_cap(probe, error, parts):
    with pytest.raises(MpsError) as caught:
        probe(SIM_CUDA_ERROR=error)
    for part in parts:
        assert part in caught.value.what


def test_a_client_that_dies_shows_its_last_words(probe):
    with pytest.raises(MpsError, match=r"Client 2 .* ended without opening a CUDA context") as caught:
        probe(SIM_CUDA_FAULT="2:dies")
    assert "the driver's library is broken" in caught.value.details


def test_a_client_that_never_answers(probe, monkeypatch):
    monkeypatch.setattr(search, "_CONTEXT_S", 0.5)
    monkeypatch.setattr(search, "_LEAVE_S", 0.5)
    with pytest.raises(MpsError, match=r"did not open its CUDA context within 0\.5 s"):
        probe(SIM_CUDA_FAULT="2:mute")


@pytest.mark.parametrize("number", [1, 3])
def test_a_process_without_mps_is_not_counted(probe, monkeypatch, number):
    monkeypatch.setattr(search, "_LISTED_S", 0.3)
    with pytest.raises(MpsError, match=r"1 of .* are not in the MPS client list"):
        probe(SIM_CUDA_FAULT=f"{number}:silent", SIM_CUDA_CLIENTS="4")


def test_a_client_that_does_not_leave_is_ended(probe, monkeypatch):
    monkeypatch.setattr(search, "_LEAVE_S", 0.5)
    assert probe(SIM_CUDA_FAULT="2:stays", SIM_CUDA_CLIENTS="3").held == 3


def test_too_little_memory_is_said_before_the_gpu_is_full(probe, monkeypatch):
    free = iter([20 * 2**30, 20 * 2**30 - 500 * 2**20])
    monkeypatch.setattr(search, "free_memory", lambda uuid: next(free))
    with pytest.raises(PreflightError, match=r"has 20\.0 GiB free, and 48 clients of 500 MiB need 23\.4 GiB"):
        probe()


def test_what_a_client_takes_is_told(probe, monkeypatch):
    free = iter([120 * 2**30, 120 * 2**30 - 519 * 2**20])
    monkeypatch.setattr(search, "free_memory", lambda uuid: next(free))
    assert probe(SIM_CUDA_CLIENTS="3").bytes_per_client == 519 * 2**20


def test_a_daemon_that_does_not_start(probe):
    with pytest.raises(MpsError, match="could not be started"):
        probe(SIM_MPS_START_FAILS="1")


def test_a_gpu_on_which_an_instance_runs_is_left_alone(probe, gpu, home):
    lease = acquire(gpu, home.gpu(gpu.uuid), "blue", environ=os.environ)
    with pytest.raises(PreflightError, match="Instance blue serves on GPU 0"):
        probe()
    assert adopt(home.gpu(gpu.uuid).pipe, gpu, environ=os.environ).daemon.pid == lease.daemon.pid
    lease.release()
    assert probe(SIM_CUDA_CLIENTS="2").held == 2


def test_workers_on_an_adopted_daemon_count(probe, gpu, home):
    seats = home.gpu(gpu.uuid).seats
    seats.mkdir(parents=True)
    descriptor = try_lock(seats / "000")
    with pytest.raises(PreflightError, match="1 workers of ts-mps serve"):
        probe()
    os.close(descriptor)


def test_a_start_or_another_probe_is_not_disturbed(probe, gpu, home):
    home.gpu(gpu.uuid).root.mkdir(parents=True)
    descriptor = try_lock(home.gpu(gpu.uuid).lock)
    with pytest.raises(PreflightError, match="starting or stopping"):
        probe()
    os.close(descriptor)


def test_a_strangers_daemon_is_left_alone(probe, gpu, home):
    lease = acquire(gpu, home.gpu(gpu.uuid), "stranger", environ=os.environ)
    pipe = str(home.gpu(gpu.uuid).pipe)
    with pytest.raises(PreflightError, match=f"answers at CUDA_MPS_PIPE_DIRECTORY={pipe}"):
        probe(CUDA_MPS_PIPE_DIRECTORY=pipe)
    lease.release()
    assert probe(SIM_CUDA_CLIENTS="2", CUDA_MPS_PIPE_DIRECTORY=pipe).held == 2  # none answers there any more


def test_mig_is_not_probed(probe, gpu):
    with pytest.raises(PreflightError, match="MIG"):
        probe(of=replace(gpu, mig_enabled=True))


@pytest.fixture
def verb(simulator, short_dir, monkeypatch, capsys):
    """`ts-mps doctor` with simulated clients: exit code, stdout, stderr."""
    monkeypatch.setattr(cap, "probe_cap", partial(probe_cap, command=HOLDER))
    monkeypatch.setenv("TS_MPS_HOME", str(short_dir))
    monkeypatch.setenv("SIM_CUDA_CLIENTS", "4")

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["doctor", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_verb_says_and_keeps_the_cap(verb, home):
    code, out, _ = verb("--probe-cap")
    assert code == 0 and "\n4 MPS clients" in out and "error 808" in out and str(home.caps) in out
    assert measured_cap(home.caps, "580.159.04", "NVIDIA H200", 13000, 2) == 4


def test_the_verb_as_json(verb, home):
    code, out, err = verb("--probe-cap", "--gpu", "0", "--json")
    value = json.loads(out)
    assert code == 0 and err == "" and value["version"] == 1
    assert (value["probe"]["held"], value["probe"]["exact"], value["kept"]) == (4, True, str(home.caps))


def test_a_lower_bound_is_not_kept(verb, home, monkeypatch):
    monkeypatch.setenv("SIM_CUDA_ERROR", "3:2")
    code, out, _ = verb("--probe-cap")
    assert code == 0 and "at least 2" in out and "Nothing was kept" in out and not home.caps.exists()


@pytest.mark.parametrize(
    ("words", "gpus", "code", "says"),
    [
        (["--gpu", "7"], [simulated_gpu()], 2, "no GPU of this index"),
        (["--gpu", "x"], [simulated_gpu()], 2, "--gpu"),
        (["--workers", "4"], [simulated_gpu()], 2, "--workers"),
        ([], [], 3, "sees no GPU"),
    ],
)
def test_what_the_verb_refuses(verb, monkeypatch, words, gpus, code, says):
    monkeypatch.setenv("SIM_GPUS", json.dumps(gpus))
    ended, _, err = verb("--probe-cap", *words)
    assert ended == code and says in " ".join(err.split())


def test_the_first_visible_gpu_is_probed(verb, monkeypatch):
    monkeypatch.setenv("SIM_GPUS", json.dumps([simulated_gpu(), simulated_gpu(1)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    _, out, _ = verb("--probe-cap", "--json")
    assert json.loads(out)["index"] == 1


@pytest.mark.parametrize("words", [("--gpu", "0"), ("--gpu=0",)])
def test_the_gpu_is_the_probes(words, capsys):
    assert main(["doctor", *words]) == 2
    assert "Add --probe-cap" in capsys.readouterr().err


def test_the_doctors_help_names_it():
    assert "--probe-cap" in doctor_verb.parser().format_help()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing(simulator, short_dir, home, signum):
    script = (
        "import sys; from functools import partial; from ts_mps.doctor import cap; from ts_mps.cli import probe_cap\n"
        f"cap.probe_cap = partial(cap.probe_cap, command={HOLDER!r})\n"
        "sys.exit(probe_cap.main(['--probe-cap']))"
    )
    environ = {**simulator, "TS_MPS_HOME": str(short_dir), "SIM_CUDA_CLIENTS": "100"}
    verb = subprocess.Popen(
        [sys.executable, "-c", script], env=environ, stderr=subprocess.PIPE, text=True, preexec_fn=hear_signals
    )
    try:
        assert eventually(lambda: len(clients_of(short_dir)) >= 2, 30)
        verb.send_signal(signum)
        verb.communicate(timeout=30)
    finally:
        verb.kill()
    assert verb.returncode == 128 + signum
    # A client that was just being started ends by itself.
    assert eventually(lambda: clients_of(short_dir) == [] and mps_processes(short_dir) == [], 10)
    assert not (short_dir / "caps").exists() and not home.caps.exists()


@pytest.mark.parametrize("nohup", [True, False])
def test_a_closed_terminal_ends_it_unless_nohup_said_otherwise(nohup):
    script = (
        "import os, signal; from ts_mps.cli.interruptible import interruptible\n"
        f"signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if nohup else 'SIG_DFL'})\n"
        "try:\n"
        "    with interruptible() as caught:\n"
        "        os.kill(os.getpid(), signal.SIGHUP)\n"
        "        print('went on')\n"
        "except KeyboardInterrupt:\n"
        "    print(*caught)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("went on" if nohup else str(int(signal.SIGHUP)))


FAKE_LIBCUDA = """
static int code;
#include <stdlib.h>
int cuInit(unsigned flags) { code = atoi(getenv("FAKE_CUDA")); return flags ? 1 : code == 100 ? 100 : 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal ? 101 : 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &code; return device == 7 ? code : 101; }
int cuGetErrorName(int error, const char **name) { if (error == 5) return 1; *name = "CUDA_ERROR_X"; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("0", {"step": "cuDevicePrimaryCtxRetain", "error": 0, "name": ""}),
        ("808", {"step": "cuDevicePrimaryCtxRetain", "error": 808, "name": "CUDA_ERROR_X"}),
        ("5", {"step": "cuDevicePrimaryCtxRetain", "error": 5, "name": ""}),
        ("100", {"step": "cuInit", "error": 100, "name": "CUDA_ERROR_X"}),
    ],
)
def test_the_holder_calls_the_driver_and_stays_until_it_may_go(tmp_path, code, answer):
    (tmp_path / "cuda.c").write_text(FAKE_LIBCUDA)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "cuda.c"], check=True)
    environ = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "FAKE_CUDA": code}
    with subprocess.Popen(
        search.HOLDER, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert json.loads(process.stdout.readline()) == answer
        if code == "0":
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            process.stdin.close()
        assert process.wait(5) == 0


def test_a_broken_libcuda_is_named(gpu, home, short_dir):
    (short_dir / "libcuda.so.1").touch()
    with pytest.raises(MpsError, match=r"Client 1 .* ended without opening") as caught:
        probe_cap(gpu, home, environ={**os.environ, "LD_LIBRARY_PATH": str(short_dir)})
    assert "libcuda.so.1" in caught.value.details
    assert mps_processes(short_dir) == []
