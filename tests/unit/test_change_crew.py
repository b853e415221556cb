"""A model's workers where TorchServe has given up threads of its own, which it counts all the same."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from watching import instance

from ts_mps.files import try_lock, write_json
from ts_mps.guardian.change import course, crew
from ts_mps.guardian.change.crew import Crew
from ts_mps.guardian.change.stage import Stage
from ts_mps.plan.model import Plan, Slot
from ts_mps.torchserve.api import ModelStatus, WorkerStatus
from ts_mps.torchserve.failures import WorkerFailure, record_failure
from ts_mps.worker_records import WorkerRecord

#: Seconds of time.monotonic().
LONG_AGO = time.monotonic() - 3600


class Model:
    """One model of three workers: TorchServe's threads, and the slots of those that live."""

    def __init__(self, folder) -> None:
        self.paths = instance(folder, Plan((), tuple(Slot(number, "bert", "1.0", None) for number in range(3))))
        self.threads: list[WorkerStatus] = []
        self.scaled: list[int] = []
        self.ended: list[set[int]] = []
        self.locks: list[int] = []
        prepared = SimpleNamespace(paths=self.paths, arguments=SimpleNamespace(wait_timeout=0.3))
        self.said: list[str] = []
        self.lost_loading = LONG_AGO
        self.stage = Stage(
            prepared,
            Plan((), ()),
            self,
            self.said.append,
            lambda plan: None,
            lambda: None,
            lambda: False,
            lambda model: self.lost_loading if model == "bert" else time.monotonic(),
        )
        self.crew = Crew(self.stage, ("bert", "1.0"))

    def thread(self, pid: int, *, ready: bool = False) -> None:
        self.threads.append(WorkerStatus(str(9000 + len(self.threads)), pid, "READY" if ready else "UNLOADING", "N/A"))

    def worker(self, slot: int, pid: int, *, lives: bool = True, state: str = "ready", clock: float = LONG_AGO) -> None:
        """Somebody is in a slot, or was the last one there."""
        record = WorkerRecord(Slot(slot, "bert", "1.0", None), True, pid, 1, state, time.time(), clock=clock)
        write_json(self.paths.slots / f"{slot:03}.json", asdict(record))
        lock = try_lock(self.paths.slots / f"{slot:03}.lock")
        assert lock is not None
        if lives:
            self.locks.append(lock)
        else:
            os.close(lock)

    def refused(self, pid: int, seconds_ago: float) -> None:
        """A worker that did not load."""
        at = time.monotonic() - seconds_ago
        record_failure(self.paths, WorkerFailure(pid, "bert", "1.0", "It is held back.", "", clock=at))

    def describe(self, name: str) -> tuple[ModelStatus, ...]:
        return (ModelStatus(name, "1.0", len(self.threads), len(self.threads), 1, tuple(self.threads), 0, 120),)

    def scale(self, name: str, version: str, workers: int) -> None:
        self.scaled.append(workers)

    @property
    def gave_up(self) -> list[bool]:
        return [thread.gave_up for thread in self.crew.threads()]


@pytest.fixture
def model(tmp_path, monkeypatch):
    made = Model(tmp_path)

    def park(of, pids, *_):
        made.ended.append(pids)
        return nullcontext()

    monkeypatch.setattr(crew, "Parking", park)
    monkeypatch.setattr(crew, "LEAVING_SECONDS", 0.0)
    yield made
    for lock in made.locks:
        os.close(lock)


@pytest.fixture
def after_a_hold(model):
    """The first of three threads gave up while its place was held back; the other two have ready workers."""
    model.refused(50, seconds_ago=1000)
    model.thread(50)
    for slot, pid in ((0, 51), (1, 52)):
        model.thread(pid, ready=True)
        model.worker(slot, pid)
    return model


def test_a_thread_without_a_worker_and_without_tries_gave_up(after_a_hold):
    assert after_a_hold.gave_up == [True, False, False]


def test_one_that_is_in_a_pause_between_two_tries_did_not(after_a_hold):
    after_a_hold.refused(50, seconds_ago=140)
    assert after_a_hold.gave_up == [False, False, False]


@pytest.mark.parametrize(
    ("state", "seconds_ago"),
    [("ready", 3600), ("loading", 0), ("loading", 60 + 144)],
    ids=["a worker that served has just died", "one was killed while it loaded", "after it had loaded for a minute"],
)
def test_one_whose_worker_has_just_gone_did_not(after_a_hold, state, seconds_ago):
    after_a_hold.worker(2, 50, lives=False, state=state, clock=time.monotonic() - seconds_ago)
    assert after_a_hold.gave_up == [False, False, False]


def test_one_whose_worker_was_killed_while_it_loaded_long_ago_did(after_a_hold):
    after_a_hold.worker(2, 50, lives=False, state="loading", clock=time.monotonic() - 300)
    assert after_a_hold.gave_up == [True, False, False]


def test_one_whose_slot_another_one_took_while_it_waits_did_not(after_a_hold):
    after_a_hold.lost_loading = time.monotonic() - 140  # its own record is the other one's by now
    assert after_a_hold.gave_up == [False, False, False]
    after_a_hold.lost_loading = time.monotonic() - 180
    assert after_a_hold.gave_up == [True, False, False]


def test_a_clock_that_was_set_makes_nobody_give_up(after_a_hold, monkeypatch):
    after_a_hold.worker(2, 50, lives=False, state="loading", clock=time.monotonic())
    tomorrow = time.time() + 86400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    assert after_a_hold.gave_up == [False, False, False]


def test_one_whose_worker_loads_or_has_no_process_yet_did_not(after_a_hold):
    after_a_hold.thread(53)
    after_a_hold.worker(2, 53, state="loading")
    after_a_hold.thread(-1)
    assert after_a_hold.gave_up == [True, False, False, False, False]


def test_more_are_asked_for_beside_it(after_a_hold):
    after_a_hold.crew.grow(3)
    assert after_a_hold.scaled == [4]


def test_of_fewer_it_is_none_and_only_who_is_to_go_is_parked(after_a_hold):
    after_a_hold.crew.shrink(1)
    assert after_a_hold.scaled == [2] and after_a_hold.ended == [{52}]
    assert after_a_hold.stage.asked == {52: "scaled-down"}


def test_as_many_as_there_are_need_no_asking(after_a_hold):
    course._to(after_a_hold.stage, after_a_hold.crew, 2)
    assert after_a_hold.scaled == [] and after_a_hold.said == []


def test_where_no_thread_works_the_change_says_so(model):
    model.refused(50, seconds_ago=1000)
    model.thread(50)
    with pytest.raises(crew.NotReadyError, match="TorchServe starts no worker of model bert"):
        course._first(model.crew)
    model.thread(51, ready=True)
    assert course._first(model.crew) == 51


def test_to_a_number_that_torchserve_believes_to_have_one_more_is_asked_for(after_a_hold):
    with pytest.raises(crew.NotReadyError, match="only 2 were ready"):
        course._to(after_a_hold.stage, after_a_hold.crew, 3)
    assert after_a_hold.scaled == [4]


def test_nobody_is_ended_while_a_thread_may_still_come_back(after_a_hold):
    after_a_hold.refused(50, seconds_ago=140)
    with pytest.raises(crew.NotReadyError, match="so none is ended"):
        after_a_hold.crew.shrink(1)
    assert after_a_hold.scaled == [] and after_a_hold.ended == []
