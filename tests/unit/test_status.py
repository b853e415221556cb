"""What status says of each worker's share, from real slots and a stub of TorchServe's word."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from watching import state

from ts_mps.cli.render import status_text
from ts_mps.files import write_json
from ts_mps.guardian import problems
from ts_mps.guardian import status as module
from ts_mps.guardian.instance import GpuStatus, Status
from ts_mps.guardian.status import look
from ts_mps.mps.control import Control, DaemonNotFound, DaemonTimeout
from ts_mps.paths import Home, InstancePaths
from ts_mps.plan.model import Plan, PlannedGpu, Slot
from ts_mps.slots import Claim, claim
from ts_mps.torchserve.api import ModelStatus, WorkerStatus
from ts_mps.worker_records import Proof, Share

UUID = "GPU-00000000-0000-4000-8000-000000000000"
GPU = PlannedGpu(0, UUID, "NVIDIA H200", 48, "/pipe")
LIMITED = Slot(0, "m", "1.0", UUID, thread_percentage=50.0, memory_limit="1536M", priority=1, cores=(0, 1, 5), sms=66)
GOT = Share(66, 50.0, 1536 * 2**20, 1, (0, 1, 5), checked=0.25)

#: The real one, which the fixture replaces.
DAEMON = module._daemon

Serve = Callable[[Slot, Share | None], Status]


@pytest.fixture
def paths(short_dir: Path) -> InstancePaths:
    home = Home(short_dir)
    home.gpu(UUID).seats.mkdir(parents=True)
    home.instance("default").slots.mkdir(parents=True)
    return home.instance("default")


@pytest.fixture
def serve(paths: InstancePaths, short_dir: Path, monkeypatch) -> Iterator[Serve]:
    """An instance of one worker, this process, which is ready with what it got; None while it loads."""
    held: list[Claim] = []
    state(short_dir).save(paths)
    monkeypatch.setattr(module, "guardian_lives", lambda _: True)
    monkeypatch.setattr(module, "_daemon", lambda _: ("running", "ACTIVE", {os.getpid()}))

    def start(slot: Slot, got: Share | None) -> Status:
        plan = Plan((GPU,), (slot,))
        write_json(paths.plan, plan.as_json())
        held.append(claim(Home(short_dir), paths, plan, "m", "1.0", on_gpu=True))
        if got is not None:
            held[-1].ready(Proof(462, 1.0), got)
        worker = WorkerStatus("9000", os.getpid(), "UNLOADING" if got is None else "READY", "N/A")
        described = ((ModelStatus("m", "1.0", 1, 1, 1, (worker,), 0),), [])
        monkeypatch.setattr(module, "_described", lambda _: described)
        status = look(paths)
        assert status is not None
        return status

    yield start
    for one in held:
        one.release()


def text(status: Status) -> str:
    console = Console(width=240)
    with console.capture() as caught:
        console.print(status_text(status))
    return caught.get()


def row(status: Status) -> list[str]:
    """The worker's row, by blanks."""
    (line,) = [line for line in text(status).splitlines() if line.startswith("m ")]
    return line.split()


def test_what_a_worker_got_is_shown_as_text_and_as_json(serve):
    status = serve(LIMITED, GOT)
    assert status.as_planned, status.problems
    assert row(status)[6:-2] == ["yes", "66", "50", "%", "checked,", "1.5", "GiB,", "low", "priority", "0-1,5"]
    (worker,) = json.loads(json.dumps(status.as_json()))["workers"]
    assert worker["expected_sms"] == 66
    assert worker["got"] == {
        "sms": 66,
        "thread_percentage": 50.0,
        "memory_limit": 1536 * 2**20,
        "priority": 1,
        "cores": [0, 1, 5],
        "checked": 0.25,
    }


def test_a_limit_that_was_not_applied_is_a_problem(serve):
    status = serve(LIMITED, replace(GOT, sms=132))
    (problem,) = status.problems
    assert problem == (
        f"Worker {os.getpid()} of model m has 132 SMs of GPU 0, and its thread percentage should leave it 66: "
        "the limit was not applied."
    )
    assert "132 (planned 66)" in text(status) and problem in text(status)


def test_fewer_sms_than_expected_are_shown_and_no_problem(serve):
    """How the hardware rounds is its own business; a worker never gets more than was meant."""
    status = serve(LIMITED, replace(GOT, sms=64))
    assert status.as_planned and "64 (planned 66)" in text(status)


@pytest.mark.parametrize(
    "slot",
    [replace(LIMITED, thread_percentage=None), replace(LIMITED, sms=0)],
    ids=["no percentage", "sms not known"],
)
def test_without_an_expectation_any_number_is_as_planned(serve, slot):
    status = serve(slot, replace(GOT, sms=132))
    assert status.as_planned and status.workers[0].expected_sms is None
    assert "planned" not in "".join(row(status))


def test_without_limits_there_is_nothing_to_show_but_sms_and_cores(serve):
    status = serve(Slot(0, "m", "1.0", UUID), Share(132, None, None, None, (3,)))
    assert row(status)[6:-2] == ["yes", "132", "-", "3"]


def test_a_worker_that_loads_has_got_nothing_yet(serve):
    status = serve(LIMITED, None)
    assert status.workers[0].got is None
    assert row(status)[6:] == ["yes", "-", "-", "-", "-"]
    assert status.problems == ("Model m: 0 of 1 planned workers are READY.",)


def test_a_plan_of_another_version_is_a_problem_and_no_traceback(serve, paths):
    serve(LIMITED, GOT)
    write_json(paths.plan, {"version": 1, "gpus": [], "slots": []})
    status = look(paths)
    assert status is not None
    assert "a plan of version 1" in status.problems[-1] and str(paths.plan) in status.problems[-1]


@pytest.mark.parametrize(
    ("error", "daemon", "problem"),
    [
        (DaemonNotFound("No daemon."), "gone", "GPU 0: its MPS daemon is gone; workers cannot be started on it."),
        (DaemonTimeout("No answer."), "hung", "GPU 0: its MPS daemon does not answer."),
    ],
)
def test_a_daemon_that_hangs_is_not_one_that_is_gone(serve, paths, monkeypatch, simulator, error, daemon, problem):
    serve(LIMITED, GOT)
    monkeypatch.setattr(module, "_daemon", DAEMON)

    def fail(_: Control) -> tuple[int, ...]:
        raise error

    monkeypatch.setattr(Control, "servers", fail)
    status = look(paths)
    assert status is not None
    assert status.gpus[0].daemon == daemon and problem in status.problems


def test_one_of_several_servers_in_fault_is_a_problem():
    gpu = GpuStatus(1, UUID, "NVIDIA H200", "running", "ACTIVE, FAULT", 3, 48, "/pipe")
    assert problems.of_gpus([gpu]) == ["GPU 1: its MPS server is in ACTIVE, FAULT."]
