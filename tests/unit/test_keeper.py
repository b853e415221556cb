"""One turn a second: what becomes of java, and what is said once all is as planned again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from watching import instance, state

from ts_mps.events import Event, recorded
from ts_mps.guardian import keeper as module
from ts_mps.guardian import takedown
from ts_mps.guardian.keeper import FAILED_TURNS, Keeper
from ts_mps.guardian.readiness import see
from ts_mps.guardian.server import PAUSES, Ended
from ts_mps.guardian.state import GpuState, State, load_state
from ts_mps.guardian.watch.act import TERMINATE_SECONDS
from ts_mps.holds import Hold, held_back, hold_back
from ts_mps.paths import Home, InstancePaths
from ts_mps.plan.model import Plan, Slot
from ts_mps.processes import ProcessId, myself
from ts_mps.slots import claim

PLAN = Plan((), (Slot(0, "m", "1.0", None),))


class Java:
    """A server that ends when it is told to."""

    def __init__(self) -> None:
        self.process = myself()
        self.end: Ended | None = None

    def ended(self) -> Ended | None:
        return self.end


@pytest.fixture
def paths(short_dir: Path) -> InstancePaths:
    return instance(short_dir, PLAN)


@pytest.fixture
def keep(paths: InstancePaths, short_dir: Path, monkeypatch) -> Iterator[object]:
    """A keeper of an instance in this state, and its java."""
    made: list[Keeper] = []
    said: list[str] = []
    signs: list[int] = []
    prepared = SimpleNamespace(
        home=Home(short_dir),
        paths=paths,
        plan=PLAN,
        models=(),
        mps=SimpleNamespace(on=False),
        config=None,
        arguments=SimpleNamespace(wait_timeout=60.0),
    )
    monkeypatch.setattr(module, "scale_as_asked", lambda api, expected: True)

    def told(event: Event) -> None:
        said.append(event.text)

    def make(now: State) -> tuple[Keeper, Java]:
        java = Java()
        made.append(Keeper(prepared, now, java, {}, said.append, told, lambda: signs.append(1)))  # type: ignore[arg-type]
        return made[-1], java

    make.said, make.signs = said, signs
    yield make
    for one in made:
        one.close()


def events(paths: InstancePaths) -> list[Event]:
    return list(recorded(paths))


def test_a_start_that_was_taken_over_serves_once_every_worker_is_ready(keep, paths, short_dir):
    keeper, _ = keep(state(short_dir, phase="recovering", gpus=()))
    keeper.turn()
    assert keeper.state.phase == "recovering" and events(paths) == []
    held = claim(Home(short_dir), paths, PLAN, "m", "1.0", on_gpu=False)
    held.ready(None)
    keeper.turn()
    assert keeper.state.phase == "serving" == load_state(paths).phase
    (event,) = events(paths)
    assert (event.kind, event.cause) == ("recovered", "guardian-gone") and "taken over" in event.text
    held.release()


def test_java_that_dies_is_started_again_and_given_up_at_last(keep, paths, short_dir):
    keeper, java = keep(state(short_dir, gpus=()))
    assert keeper.check_java() is None and keeper.state.phase == "serving"
    java.end = Ended(False, "by signal 9")
    assert keeper.check_java() is None
    assert keeper.state.phase == "recovering" and "by signal 9" in load_state(paths).why
    assert keeper.check_java() is None, "it has been noted"
    (event,) = events(paths)
    assert event.kind == "java-gone" and f"again in {PAUSES[0]:g} s" in event.text
    for _ in PAUSES[1:]:
        keeper._restart_at = None
        assert keeper.check_java() is None
    keeper._restart_at = None
    assert keeper.check_java() == 1
    assert keeper.state.phase == "stopping" and "is not started again" in keeper.state.error
    assert [event.kind for event in events(paths)] == ["java-gone"] * (len(PAUSES) + 1)


def test_java_that_was_told_to_end_ends_the_instance(keep, paths, short_dir):
    keeper, java = keep(state(short_dir, gpus=()))
    java.end = Ended(True, "with status 143")
    assert keeper.check_java() == 0 and events(paths) == []


def test_a_look_that_fails_is_told_once_and_tried_again(keep, paths, short_dir, monkeypatch):
    keeper, _ = keep(replace(state(short_dir), gpus=()))
    monkeypatch.setattr(keeper._watch, "turn", lambda **_: (_ for _ in ()).throw(RuntimeError("no /proc")))
    keeper.turn()
    keeper.turn()
    (event,) = events(paths)
    assert event.kind == "watch-failed" and "no /proc" in event.text
    traceback, sentence = keep.said
    assert "in turn" in traceback and sentence == event.text


def test_one_place_that_stays_empty_keeps_nobody_from_the_others_for_ever(keep, paths, short_dir):
    keeper, _ = keep(state(short_dir, phase="recovering", gpus=()))
    keeper.turn()
    assert keeper.state.phase == "recovering"
    keeper._settle_by = 0.0
    keeper.turn()
    keeper.turn()
    assert keeper.state.phase == "serving" == load_state(paths).phase
    (event,) = events(paths)
    assert event.kind == "not-recovered" and "within 60 s" in event.text


def test_a_repair_that_hangs_holds_a_stop_up_for_a_bounded_time(keep, short_dir, monkeypatch):
    keeper, _ = keep(state(short_dir, gpus=()))
    monkeypatch.setattr(module, "CLOSING_SECONDS", 0.2)
    go_on = threading.Event()
    actor = keeper._watch._actor
    actor._running["GPU-0"] = actor._pool.submit(go_on.wait, 30)
    began = time.monotonic()
    keeper.close()
    assert 0.2 <= time.monotonic() - began < 5
    monkeypatch.setattr(module, "CLOSING_SECONDS", 30.0)
    keeper.close()
    assert time.monotonic() - began < 5, "it has been waited for"
    go_on.set()


def test_a_second_signal_ends_the_wait_for_a_repair(keep, short_dir):
    keeper, _ = keep(state(short_dir, gpus=()))
    go_on = threading.Event()
    actor = keeper._watch._actor
    actor._running["GPU-0"] = actor._pool.submit(go_on.wait, 30)
    heard = iter([False, False, True])
    began = time.monotonic()
    keeper.close(lambda: next(heard))
    assert time.monotonic() - began < 5 and next(heard, None) is None
    go_on.set()


def test_a_guardian_whose_turns_all_fail_gives_no_sign_of_life(keep, short_dir, monkeypatch):
    keeper, _ = keep(state(short_dir, gpus=()))

    def fails(**_):
        raise RuntimeError("no /proc")

    with monkeypatch.context() as broken:
        broken.setattr(keeper._watch, "turn", fails)
        for _ in range(FAILED_TURNS - 1):
            keeper.turn()
        keeper.alive()
        assert len(keep.signs) == 1, "that may pass"
        keeper.turn()
        keeper.alive()
        assert len(keep.signs) == 1
    keeper.turn()
    keeper.alive()
    assert len(keep.signs) == 2


def test_signs_of_life_while_java_is_started_again(keep, short_dir, monkeypatch):
    """Workers that stay, on many GPUs with daemons that hang, take longer than the watchdog waits."""
    gpus = tuple(GpuState(index, f"GPU-{index}", "", pipe="/pipe") for index in range(4))
    keeper, _ = keep(state(short_dir, gpus=gpus))
    left = (ProcessId(4194999, 1), ProcessId(4194998, 1))
    monkeypatch.setattr(takedown, "worker_processes", lambda home, paths: left)
    monkeypatch.setattr(takedown, "wait_gone", lambda left, seconds, sleep: left)
    slots = [SimpleNamespace(pid=4194999, slot=SimpleNamespace(gpu=gpu.uuid)) for gpu in gpus]
    monkeypatch.setattr(takedown, "workers", lambda paths: slots)
    asked = []
    monkeypatch.setattr(takedown, "terminate_and_kill", lambda pipe, pids, timeout_s: asked.append((pids, timeout_s)))
    monkeypatch.setattr(module.Server, "start", lambda prepared, pid_path, again: Java())
    monkeypatch.setattr(module, "note_pid", lambda path, server: None)
    keeper._start_again()
    assert asked == [((4194999,), TERMINATE_SECONDS)] * 4
    assert len(keep.signs) == 4, "before each"


def test_a_clock_that_is_set_ends_nothing_and_frees_nothing(keep, paths, short_dir, monkeypatch):
    hold_back(paths, {0: Hold("It crashed.", time.monotonic() + 300)})
    keeper, _ = keep(state(short_dir, gpus=()))
    keeper.turn()
    for set_to in (time.time() + 3600, time.time() - 3600):
        monkeypatch.setattr(time, "time", lambda now=set_to: now)
        keeper.turn()
        assert set(held_back(paths)) == {0} and events(paths) == []
        assert see(paths).look == "fresh"
