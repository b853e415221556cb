"""Carrying out what was judged: in threads, once each, and patient with a TorchServe that does not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from support import eventually
from watching import instance

from ts_mps.events import recorded
from ts_mps.guardian.watch import act
from ts_mps.guardian.watch.act import Actor
from ts_mps.guardian.watch.memory import EndProcesses, LearnTimeout, ReviveModel, ScaleModel
from ts_mps.guardian.watch.watch import Watch
from ts_mps.holds import Hold, at_rest, hold_back
from ts_mps.paths import Home
from ts_mps.plan.model import Plan, Slot
from ts_mps.processes import ProcessId
from ts_mps.torchserve.api import ModelStatus, WorkerStatus
from ts_mps.torchserve.client import ApiError

#: Seconds of time.monotonic().
LONG_AGO = float("-inf")


class Management:
    """TorchServe's management API, which refuses the first ``silent`` questions with a status."""

    def __init__(self, silent: int = 0, status: int = 0, gate: threading.Event | None = None) -> None:
        self.silent = silent
        self.status = status
        self.gate = gate
        self.asked = 0
        self.scaled: list[tuple[str, str, int]] = []
        self.retry_seconds = 300

    def describe(self, name: str) -> tuple[ModelStatus, ...]:
        if self.gate is not None:
            assert self.gate.wait(10)
        self.asked += 1
        if self.asked <= self.silent:
            raise ApiError("TorchServe does not answer.", status=self.status)
        workers = tuple(WorkerStatus(str(9000 + number), 0, "UNLOADING", "") for number in range(3))
        retry = self.retry_seconds
        return tuple(ModelStatus(name, version, 4, 4, 1, workers, 0, 20, retry) for version in ("1.0", "2.0"))

    def scale(self, name: str, version: str, workers: int) -> None:
        self.scaled.append((name, version, workers))


@pytest.fixture
def actor(monkeypatch) -> Iterator[object]:
    monkeypatch.setattr(act, "API_PAUSE", 0.01)
    made = []

    def make(api: Management) -> Actor:
        made.append(Actor({}, api, 2))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close(10.0)


def settle(actor: Actor) -> dict[str, str]:
    assert eventually(lambda: not actor._running or all(future.done() for future in actor._running.values()))
    return actor.finished()


def test_a_model_is_scaled_once_torchserve_answers(actor):
    api = Management(silent=3)
    repair = actor(api)
    repair.start([ScaleModel("bert", "2.0", 0)])
    assert repair.busy == {"bert"}
    assert settle(repair) == {"bert": ""} and repair.busy == frozenset()
    assert api.scaled == [("bert", "2.0", 0)] and api.asked == 4


def test_a_model_that_torchserve_does_not_know_is_not_asked_for_again(actor):
    api = Management(silent=100, status=404)
    repair = actor(api)
    repair.start([ScaleModel("bert", "", 2)])
    assert settle(repair) == {"bert": "TorchServe does not answer."}
    assert (api.asked, api.scaled) == (1, [])


def test_what_is_done_stays_busy_until_its_failure_has_been_heard(actor):
    repair = actor(Management(silent=100, status=404))
    repair.start([LearnTimeout("bert")])
    assert eventually(lambda: repair._running["bert"].done())
    assert repair.busy == {"bert"}, "a second action would hide the failure of the first"
    assert repair.finished() == {"bert": "TorchServe does not answer."}
    assert repair.busy == frozenset() and repair.finished() == {}


def test_one_model_does_not_wait_for_another(actor):
    gate = threading.Event()
    api = Management(gate=gate)
    repair = actor(api)
    child = subprocess.Popen(["sleep", "60"])
    process = ProcessId.of(child.pid)
    repair.start([ReviveModel("bert", "1.0", 4, 1, LONG_AGO), EndProcesses("GPU-0", (process,))])
    assert child.wait(10) == -signal.SIGKILL, "while the other still waits for TorchServe"
    gate.set()
    assert settle(repair) == {"bert": "", "GPU-0": ""}
    assert api.scaled == [("bert", "1.0", 6)], "three that live or gave up, and three more"


def test_a_version_that_torchserve_no_longer_has_is_a_failure_to_scale(actor):
    repair = actor(api := Management())
    repair.start([ScaleModel("bert", "3.0", 2)])
    assert "TorchServe knows no version 3.0 of model bert" in settle(repair)["bert"]
    assert api.scaled == [] and repair.scaled == {}


@pytest.mark.parametrize(
    ("retry", "quiet", "revived"), [(300, 200, 1), (3600, 200, 0), (3600, 1700, 1)], ids=["usual", "patient", "over"]
)
def test_a_model_whose_threads_still_try_is_not_revived(actor, retry, quiet, revived):
    api = Management()
    api.retry_seconds = retry
    repair = actor(api)
    repair.start([ReviveModel("bert", "1.0", 4, 1, time.monotonic() - quiet)])
    assert settle(repair) == {"bert": ""}
    assert len(api.scaled) == revived


def test_nor_is_one_that_was_asked_for_workers_just_now(actor):
    repair = actor(api := Management())
    repair.start([ReviveModel("bert", "1.0", 4, 1, LONG_AGO)])
    settle(repair)
    repair.start([ScaleModel("bert", "2.0", 4)])
    settle(repair)
    repair.start([ReviveModel("bert", version, 4, 1, LONG_AGO) for version in ("1.0", "2.0")])
    settle(repair)
    assert api.scaled == [("bert", "1.0", 6), ("bert", "2.0", 4)]


def test_timeouts_are_learnt(actor):
    repair = actor(Management(silent=1))
    repair.start([LearnTimeout("bert")])
    assert repair.unlearnt == {"bert"}
    assert settle(repair) == {"bert": ""} and repair.timeouts == {"bert": 20.0} and not repair.unlearnt


def test_a_timeout_once_known_counts_until_another_one_is(actor, monkeypatch):
    api = Management()
    repair = actor(api)
    repair.start([LearnTimeout("bert")])
    settle(repair)
    api.asked, api.silent, api.status = 0, 100, 404
    repair.start([LearnTimeout("bert")])
    assert settle(repair) == {"bert": "TorchServe does not answer."}
    assert repair.timeouts == {"bert": 20.0} and repair.unlearnt == {"bert"}


def test_a_failure_that_says_nothing_is_a_failure(actor, monkeypatch):
    api = Management()
    monkeypatch.setattr(api, "describe", lambda name: (_ for _ in ()).throw(TimeoutError()))
    repair = actor(api)
    repair.start([LearnTimeout("bert")])
    assert settle(repair) == {"bert": "TimeoutError()"}


def test_a_process_that_has_gone_is_not_mistaken_for_its_successor(actor):
    repair = actor(Management())
    repair.start([EndProcesses("GPU-0", (ProcessId(os.getpid(), 1),))])
    assert settle(repair) == {"GPU-0": ""}


def test_the_end_does_not_wait_for_a_torchserve_that_does_not_answer(actor, monkeypatch):
    monkeypatch.setattr(act, "API_PAUSE", 60.0)
    repair = actor(Management(silent=100))
    repair.start([ScaleModel("bert", "", 2)])
    began = time.monotonic()
    repair.close(10.0)
    assert time.monotonic() - began < 5


def test_one_that_is_not_ours_to_end_does_not_save_the_others(actor, monkeypatch):
    foreign, own = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    kill = os.kill

    def refuse(pid: int, signum: int) -> None:
        if pid == foreign.pid:
            raise PermissionError
        kill(pid, signum)

    try:
        processes = tuple(ProcessId.of(one.pid) for one in (foreign, own))
        monkeypatch.setattr(os, "kill", refuse)
        repair = actor(Management())
        repair.start([EndProcesses("GPU-0", processes)])
        why = settle(repair)["GPU-0"]
        assert own.wait(10) == -signal.SIGKILL and foreign.poll() is None
        assert f"The processes {foreign.pid} on GPU GPU-0 cannot be ended" in why
    finally:
        monkeypatch.undo()
        for one in (foreign, own):
            one.kill()
            one.wait()


def test_a_repair_that_fails_again_and_again_is_told_once_for_each_reason(short_dir, monkeypatch):
    home = Home(short_dir)
    paths = home.instance("default")
    paths.slots.mkdir(parents=True)
    watch = Watch(home, paths, Plan((), ()), {}, Management(), lambda event: None)
    outcomes = [{"GPU-0": why} for why in ("gone", "gone", "locked", "gone", "", "gone")] + [{}, {"GPU-0": "gone"}]
    for outcome in outcomes:
        monkeypatch.setattr(watch._actor, "finished", lambda outcome=outcome: outcome)
        watch.turn(java=False, java_restarts=0)
    watch.close(1.0)
    told = [event.text.rpartition(" ")[2] for event in recorded(paths) if event.kind == "repair-failed"]
    assert told == ["gone", "locked", "gone", "gone"], "after a success the same is news again"


def test_a_model_at_rest_is_woken_by_the_next_guardian(short_dir):
    plan = Plan((), (Slot(0, "bert", "1.0", None),))
    home, paths, api = Home(short_dir), instance(short_dir, plan), Management()

    def watch(until: Callable[[], bool]) -> None:
        guardian = Watch(home, paths, plan, {}, api, lambda event: None)
        assert eventually(lambda: guardian.turn(java=True, java_restarts=0) and until())
        guardian.close(10.0)

    hold_back(paths, {0: Hold("It crashed again and again.", time.monotonic() + 600)})
    watch(lambda: api.scaled == [("bert", "1.0", 0)])
    assert at_rest(paths) == {("bert", "1.0")}
    hold_back(paths, {})  # its time is over while nobody watches
    watch(lambda: not at_rest(paths))
    assert api.scaled == [("bert", "1.0", 0), ("bert", "1.0", 1)]


def test_of_an_order_without_an_answer_nobody_knows_whether_it_was_taken(actor, monkeypatch):
    api = Management()
    repair = actor(api)
    repair.start([ScaleModel("bert", "1.0", 2)])
    settle(repair)
    assert repair.scaled == {("bert", "1.0"): 2}
    monkeypatch.setattr(api, "scale", lambda *_: (_ for _ in ()).throw(ApiError("No answer within 20 s.")))
    repair.start([ScaleModel("bert", "1.0", 0)])
    settle(repair)
    assert repair.scaled == {}
