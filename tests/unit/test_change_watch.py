"""What the watch makes of workers that go because they were asked to, and of a plan that changes under it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from judging import PLACES, World
from watching import bert, state, watched

from ts_mps.guardian.readiness import Seen as Files
from ts_mps.guardian.readiness import not_ready
from ts_mps.guardian.watch.judge import judge
from ts_mps.guardian.watch.memory import Absence, Fault, Memory, ReviveModel
from ts_mps.guardian.watch.places import GIVEN_UP
from ts_mps.guardian.watch.seen import ROLLED, SCALED_DOWN, Underway
from ts_mps.guardian.watch.show import watched as shown
from ts_mps.holds import Hold
from ts_mps.processes import ProcessId

NOW = 1_000_000.0


def look(world: World, change: Underway, places=PLACES):
    """One judgement of the world while something is being changed."""
    world.now += 1.0
    seen = replace(world.seen(), change=change, places=places)
    judgement = judge(world.memory, seen, world.now)
    world.memory = judgement.memory
    return seen, judgement


def test_workers_that_are_replaced_count_as_replaced_and_as_nobodys_fault():
    world = World()
    for _ in range(30):  # more than a crash loop takes
        pid = world.workers[0].process.pid
        world.kill(0)
        change = Underway("rolling restart", frozenset({"bert"}), {pid: ROLLED})
        _, gone = look(world, change)
        assert gone.events == () and gone.memory.holds == {} and gone.memory.crashes == {}
        world.workers[0] = world.fresh(PLACES[0], ready=True)
        _, back = look(world, change)
        assert back.events == (), "its guardian tells of the change"
    assert world.memory.restarts == {"bert": {ROLLED: 30}}
    assert world.memory.recoveries == ()


def test_one_that_dies_meanwhile_and_was_not_asked_is_a_fault():
    world = World()
    world.kill(1)
    _, judgement = look(world, Underway("rolling restart", frozenset({"bert"}), {1: ROLLED}))
    assert [event.kind for event in judgement.events] == ["worker-gone"] and judgement.memory.crashes


def test_places_that_are_no_more_are_not_waited_for():
    world = World()
    pid = world.workers[4].process.pid
    world.kill(4)
    _, judgement = look(world, Underway("scaling", frozenset({"bert"}), {pid: SCALED_DOWN}), PLACES[:4])
    assert judgement.events == () and judgement.memory.absent == {}


def test_a_model_that_is_being_changed_is_left_alone():
    world = World()
    world.kill(0)
    look(world, Underway())
    world.now += GIVEN_UP + 1
    busy = replace(world.seen(), busy=frozenset({"bert"}))
    assert not any(isinstance(a, ReviveModel) for a in judge(world.memory, busy, world.now).actions)
    free = replace(world.seen(), busy=frozenset())
    assert any(isinstance(a, ReviveModel) for a in judge(world.memory, free, world.now).actions)


def test_one_that_was_killed_while_it_loaded_was_a_try_and_is_told_to_the_change():
    world = World()
    world.kill(2)
    look(world, Underway())
    assert world.memory.lost_loading == {}, "it had been ready: TorchServe tries again within a second"
    world.now += GIVEN_UP - 30
    world.workers[2] = world.fresh(PLACES[2])
    look(world, Underway())
    world.kill(2)
    look(world, Underway())
    assert world.memory.lost_loading == {"rank": world.now}
    tried = world.now
    world.now += GIVEN_UP - 30
    assert not any(isinstance(a, ReviveModel) for a in judge(world.memory, world.seen(), world.now).actions)
    world.now += 31
    revived = [a for a in judge(world.memory, world.seen(), world.now).actions if isinstance(a, ReviveModel)]
    assert revived == [ReviveModel("rank", "1.0", 1, 0, tried)]


def test_what_is_remembered_of_slots_that_go_goes_with_them():
    process = ProcessId(7, 1)
    memory = Memory(
        faults={"GPU-0": Fault("server-fault", NOW, {0: process, 9: process})},
        absent={0: Absence(NOW, "died"), 9: Absence(NOW, "died")},
        holds={0: Hold("so"), 9: Hold("so")},
    )
    kept = memory.kept(frozenset({0, 1}))
    assert kept.faults["GPU-0"].victims == {0: process}
    assert set(kept.absent) == set(kept.holds) == {0}


def test_what_is_being_changed_is_shown():
    world = World()
    seen, judgement = look(world, Underway("scaling model bert to 3 worker(s)"))
    shows = shown(judgement.memory, seen, java_restarts=0, took=0.01)
    assert shows.changing == "scaling model bert to 3 worker(s)"


@pytest.mark.parametrize(
    ("ready", "changing", "reasons"),
    [(1, "rolling restart", 0), (0, "rolling restart", 1), (1, "", 1), (2, "", 0)],
    ids=["one away on purpose", "all away", "one away", "nobody away"],
)
def test_readiness_while_workers_are_replaced(tmp_path, ready, changing, reasons):
    of = state(tmp_path, clock=NOW - 3600)
    files = Files(
        of, watched(clock=NOW - 1, models=bert(ready=ready, attached=ready), changing=changing), True, True, NOW
    )
    assert len(not_ready(files, strict=True)) == reasons
    assert bool(not_ready(files)) == (ready == 0)
