"""MPS broken under load on two simulated GPUs: the struck GPU is as planned again by itself, the other never notices.

A handler becomes a client through the simulator's side door; its answers say on which GPU it was.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from loading import Load
from serving import CLIENT
from support import CONTROL, eventually, mps_processes, simulated_gpu

from ts_mps.events import Event, recorded
from ts_mps.guardian.watched import load_watched

#: Hangs if it is asked to, and tells its GPU.
HANGING = CLIENT.replace("import os", "import os, time").replace(
    '        return [b"served"]',
    """        if bytes(data[0]["body"]) == b"hang":
            time.sleep(600)
        return [os.environ["CUDA_VISIBLE_DEVICES"]]""",
)

UUIDS = [str(simulated_gpu(index)["uuid"]) for index in range(2)]


@pytest.fixture
def mps(simulated):
    """Two models, `left` with two workers on GPU 0 and `right` with one on GPU 1, served under MPS."""
    simulated.environ["SIM_GPUS"] = json.dumps([simulated_gpu(0), simulated_gpu(1)])
    simulated.environ["SIM_NVML_LOST"] = str(simulated.folder / "lost")
    simulated.environ["OMP_NUM_THREADS"] = "1"
    simulated.archive("left", HANGING, workers=2, deviceIds=[0, 0], deviceType="gpu", responseTimeout=8)
    simulated.archive("right", HANGING, workers=1, deviceIds=[1], deviceType="gpu")
    done = simulated.start("--models", "left.mar", "right.mar", "--disable-token-auth")
    assert done.returncode == 0, done.stderr
    assert [worker.slot.gpu for worker in simulated.workers()] == [UUIDS[0], UUIDS[0], UUIDS[1]]
    return simulated


def on_gpu(mps, index: int) -> dict[int, str]:
    """Pid -> state of the workers on a GPU."""
    return {worker.pid: worker.state for worker in mps.workers() if worker.slot.gpu == UUIDS[index]}


def as_planned(mps, old: dict[int, str], count: int = 2) -> bool:
    """GPU 0 has as many ready workers as planned, none of the old ones, and status finds nothing wrong."""
    now = on_gpu(mps, 0)
    return len(now) == count and not set(now) & set(old) and set(now.values()) == {"ready"} and mps.status().as_planned


def events(mps, kind: str) -> list[Event]:
    return [event for event in recorded(mps.paths()) if event.kind == kind]


def daemon(mps, index: int) -> psutil.Process:
    pipe = str(mps.home.gpu(UUIDS[index]).pipe)
    (found,) = [
        process
        for process in mps_processes(mps.folder)
        if Path(process.cmdline()[0]).name == CONTROL and process.environ()["CUDA_MPS_PIPE_DIRECTORY"] == pipe
    ]
    return found


def told(mps, index: int) -> str:
    """What the daemon of a GPU was asked."""
    return (mps.home.gpu(UUIDS[index]).log / "control.log").read_text()


def stop(mps) -> None:
    stopped = mps.ts_mps("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert mps.left() == [] and mps_processes(mps.folder) == []


def test_a_server_in_fault_is_freed_of_all_its_clients(mps):
    files, old, other = mps.home.gpu(UUIDS[0]), on_gpu(mps, 0), on_gpu(mps, 1)
    with Load(mps, "left", clients=2) as left, Load(mps, "right", clients=1) as right:
        assert eventually(lambda: left.good_since(0.0) and right.good_since(0.0))
        moment = time.monotonic()
        (files.pipe / "sim-fault").write_text(" ".join(map(str, old)))
        with (files.log / "server.log").open("a") as log:
            log.write("Server is handling a fatal GPU error.\n")
        assert eventually(lambda: as_planned(mps, old), 30), mps.status().problems
        assert eventually(lambda: left.good_since(moment), 10)
        assert eventually(lambda: len(events(mps, "recovered")) == 1, 10)
    asked = [line.split()[-1] for line in told(mps, 0).splitlines() if "terminate_client" in line]
    assert sorted(asked) == sorted(map(str, old)), "each once"
    assert "terminate_client" not in told(mps, 1)
    assert on_gpu(mps, 1) == other and right.failed() == []
    (fault,), (recovered,) = events(mps, "server-fault"), events(mps, "recovered")
    assert fault.gpu == recovered.gpu == UUIDS[0] and recovered.cause == "server-fault" and recovered.seconds < 25
    stop(mps)


def test_a_killed_server_takes_its_workers_along(mps):
    old, other = on_gpu(mps, 0), on_gpu(mps, 1)
    servers = {worker.proof.server for worker in mps.workers() if worker.slot.gpu == UUIDS[0]}
    with Load(mps, "right", clients=1) as right:
        os.kill(servers.pop(), signal.SIGKILL)
        assert eventually(lambda: as_planned(mps, old), 30), mps.status().problems
    assert on_gpu(mps, 1) == other and right.failed() == []
    assert [event.gpu for event in events(mps, "server-gone")] == [UUIDS[0]]
    assert eventually(lambda: [event.cause for event in events(mps, "recovered")] == ["server-gone"], 10)
    stop(mps)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_daemon_that_is_killed_or_hangs_is_replaced_before_its_workers(mps, signum):
    old, other, first = on_gpu(mps, 0), on_gpu(mps, 1), daemon(mps, 0)
    unproven = []
    with Load(mps, "right", clients=1) as right:
        first.send_signal(signum)
        if signum == signal.SIGKILL:
            # One comes back at once, and must wait for the daemon.
            os.kill(min(old), signal.SIGKILL)

        def back() -> bool:
            unproven.extend(w.pid for w in mps.workers() if w.slot.gpu and w.state == "ready" and w.proof is None)
            return as_planned(mps, old)

        assert eventually(back, 55), mps.status().problems
    assert unproven == [], "at no time did one serve without MPS"
    assert daemon(mps, 0).pid != first.pid
    assert mps.state().gpus[0].daemon.pid == daemon(mps, 0).pid
    assert on_gpu(mps, 1) == other and right.failed() == []
    kind = "daemon-gone" if signum == signal.SIGKILL else "daemon-hung"
    assert [event.gpu for event in events(mps, kind)] == [UUIDS[0]]
    stop(mps)


def test_a_worker_that_is_no_client_is_found_and_replaced(mps):
    old, other = on_gpu(mps, 0), on_gpu(mps, 1)
    victim = min(old)
    (mps.home.gpu(UUIDS[0]).pipe / "sim-clients" / str(victim)).unlink()
    assert eventually(lambda: victim not in on_gpu(mps, 0), 25)
    assert eventually(lambda: mps.status().as_planned, 25), mps.status().problems
    assert set(old) - {victim} < set(on_gpu(mps, 0)) and on_gpu(mps, 1) == other
    assert [event.pid for event in events(mps, "worker-unattached")] == [victim]
    stop(mps)


def test_a_worker_that_hangs_is_terminated_through_mps_before_torchserve_kills_it(mps):
    old = on_gpu(mps, 0)
    assert eventually(lambda: (seen := load_watched(mps.paths())) is not None and seen.models[0].ready == 2, 10)
    began = time.monotonic()
    with Load(mps, "left", clients=1, body=b"hang") as load:
        assert eventually(lambda: bool(load.answers), 12)
        took = time.monotonic() - began
        load.end()
    # TorchServe says 507 if it finds the exit status of a SIGKILL already there, else 500.
    assert load.answers[0].status in (500, 507) and b"Worker died." in load.answers[0].body
    assert 4 < took < 8
    (hung,) = events(mps, "worker-hung")
    assert hung.pid in old and f"terminate_client {_server(told(mps, 0))} {hung.pid}" in told(mps, 0)
    assert eventually(lambda: len(on_gpu(mps, 0)) == 2 and mps.status().as_planned, 25), mps.status().problems
    stop(mps)


def _server(log: str) -> str:
    return log.rpartition("terminate_client ")[2].split()[0]


def test_a_lost_gpu_keeps_no_worker_and_the_other_serves_on(mps):
    other = on_gpu(mps, 1)
    with Load(mps, "right", clients=1) as right:
        (mps.folder / "lost").write_text(UUIDS[0])
        assert eventually(lambda: on_gpu(mps, 0) == {} and bool(events(mps, "gpu-lost")), 25)
        status = mps.ts_mps("status")
        assert status.returncode == 7
        assert "GPU 0 is lost: it fell off the bus (Xid 79" in status.stdout
        assert "Model left: 2 of 2 places are held back: GPU 0 is lost" in status.stdout
        assert eventually(lambda: not mps.api().describe("left")[0].workers, 20), "TorchServe asks no more"
        (mps.folder / "lost").unlink()
        assert eventually(lambda: len(on_gpu(mps, 0)) == 2 and mps.status().as_planned, 45), mps.status().problems
    assert on_gpu(mps, 1) == other and right.failed() == []
    stop(mps)
