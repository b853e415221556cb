"""The watch's judgement, in a world that its actions change: what must never happen, and what must always come back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from judging import GPUS, PLACES, TIMEOUT, World

from ts_mps.activity import UNKNOWN
from ts_mps.events import Event
from ts_mps.guardian.watch.case import AGAIN
from ts_mps.guardian.watch.crashes import QUIET
from ts_mps.guardian.watch.faults import GIVE_UP
from ts_mps.guardian.watch.judge import judge
from ts_mps.guardian.watch.memory import (
    Ended,
    EndProcesses,
    Fault,
    LearnTimeout,
    Memory,
    RestoreDaemon,
    ReviveModel,
    ScaleModel,
)
from ts_mps.guardian.watch.places import GIVEN_UP, WAKE_AGAIN
from ts_mps.guardian.watch.seen import Seen, WorkerSeen
from ts_mps.processes import ProcessId

SLOTS = st.sampled_from([place.slot for place in PLACES])


class Faults(RuleBasedStateMachine):
    """Anything may break at any time; :meth:`World.obey` fails on an action that must never be taken."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(gpu=st.sampled_from(GPUS))
    def fault(self, gpu):
        world = self.world.gpus[gpu]
        world.victims = {w.process.pid for w in self.world.on(gpu) if w.server == world.server}

    @rule(gpu=st.sampled_from(GPUS))
    def server_dies(self, gpu):
        self.world.gpus[gpu].server = next(self.world.pids)
        self.world.gpus[gpu].victims = set()

    @rule(gpu=st.sampled_from(GPUS), how=st.sampled_from(["gone", "silent"]))
    def daemon_breaks(self, gpu, how):
        self.world.gpus[gpu].daemon = how

    @rule(slot=SLOTS)
    def worker_dies(self, slot):
        self.world.kill(slot)

    @rule(slot=SLOTS)
    def worker_leaves_mps(self, slot):
        if slot in self.world.workers and self.world.workers[slot].ready:
            self.world.workers[slot].listed = False

    @rule(slot=SLOTS)
    def worker_hangs(self, slot):
        if slot in self.world.workers and self.world.workers[slot].ready:
            self.world.workers[slot].hung_since = self.world.now

    @rule(gpu=st.sampled_from(GPUS), lost=st.booleans())
    def gpu_is_lost_or_back(self, gpu, lost):
        self.world.gpus[gpu].lost = lost

    @rule(alive=st.booleans())
    def java(self, alive):
        self.world.java = alive
        if not alive:
            self.world.workers.clear()
            self.world.asleep.clear()
            for gpu in self.world.gpus.values():
                gpu.victims.clear()

    @rule(seconds=st.sampled_from([0.0, 3.0]))
    def kills_take(self, seconds):
        self.world.linger = seconds

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds):
        self.world.tick(seconds)

    def teardown(self):
        self.world.java = True
        for gpu in self.world.gpus.values():
            gpu.lost = False
        self.world.tick(60 + int(TIMEOUT))
        if self.world.memory.holds:
            self.world.tick(int(QUIET) + 60)
        assert self.world.as_planned, (self.world.workers, self.world.memory)
        assert not self.world.memory.faults and not self.world.memory.holds and not self.world.memory.absent
        assert not self.world.memory.ended and not self.world.asleep and not self.world.memory.parked


TestFaults = Faults.TestCase
TestFaults.settings = settings(max_examples=150, stateful_step_count=30)


def kinds(world: World) -> list[str]:
    return [event.kind for event in world.events]


def test_nothing_is_done_while_all_is_well():
    world = World()
    world.tick(30)
    assert world.ended == [] and world.events == []


def test_a_fault_ends_every_client_of_that_server_at_once_and_nobody_else():
    world = World()
    struck = {worker.process for worker in world.on("GPU-0")}
    world.gpus["GPU-0"].victims = {process.pid for process in struck}
    world.tick()
    assert set(world.ended) == struck
    world.tick(10)
    assert world.as_planned
    assert kinds(world) == ["server-fault", "recovered"]
    assert world.memory.counts == {"server-fault GPU-0": 1}
    assert {model: sum(causes.values()) for model, causes in world.memory.restarts.items()} == {"bert": 2, "rank": 1}
    assert world.memory.restarts["rank"] == {"server-fault": 1}
    (recovered,) = [event for event in world.events if event.kind == "recovered"]
    assert recovered.seconds == world.memory.recoveries[0] and 1 < recovered.seconds < 10


def test_the_daemon_comes_before_its_workers():
    world = World()
    old = {worker.process for worker in world.on("GPU-0")}
    world.gpus["GPU-0"].daemon = "gone"
    first = judge(world.memory, world.seen(), world.now + 1)
    assert first.actions == (RestoreDaemon("GPU-0"),)
    world.tick(2)
    assert set(world.ended) == old
    world.tick(10)
    assert world.as_planned and kinds(world) == ["daemon-gone", "recovered"]


def test_a_daemon_that_does_not_come_back_is_tried_ever_more_seldom():
    world = World()
    world.gpus["GPU-0"].daemon = "gone"
    tries = []
    for second in range(200):
        judgement = judge(world.memory, world.seen(), world.now + second)
        world.memory = judgement.memory
        tries += [second for action in judgement.actions if isinstance(action, RestoreDaemon)]
        assert not any(isinstance(action, EndProcesses) for action in judgement.actions)
    assert tries == [0, 1, 3, 7, 15, 31, 63, 123, 183]


def test_a_daemon_that_is_gone_for_days_is_still_tried():
    world = World()
    world.gpus["GPU-0"].daemon = "gone"
    fault = Fault("daemon-gone", world.now, tries=2000, next_try=world.now)
    world.memory = replace(world.memory, faults={"GPU-0": fault})
    judgement = judge(world.memory, world.seen(), world.now + 1)
    assert RestoreDaemon("GPU-0") in judgement.actions
    assert judgement.memory.faults["GPU-0"].next_try == world.now + 61


def test_a_process_that_outlives_its_end_is_killed_again_past_mps():
    world = World()
    world.workers[3].hung_since = began = world.now
    hung, actions = world.workers[3].process, []
    while world.now < began + TIMEOUT + 3 * AGAIN:
        world.now += 1
        judgement = judge(world.memory, world.seen(), world.now)
        world.memory = judgement.memory
        actions += [(action, world.now) for action in judgement.actions]
    first, *again = actions
    assert first[0] == EndProcesses("GPU-1", (hung,))
    assert [action for action, _ in again] == [EndProcesses("GPU-1", (hung,), through_mps=False)] * 3
    assert again[0][1] - first[1] == AGAIN
    assert world.memory.counts == {"worker-hung GPU-1": 1}, "it is told once"


def test_those_who_outlive_their_end_are_killed_together_so_that_one_refusal_saves_nobody():
    world = World()
    left = [world.workers[3].process, world.workers[4].process]
    ended = {process: Ended("server-fault", "GPU-1", world.now - AGAIN) for process in left}
    judgement = judge(replace(world.memory, ended=ended), world.seen(), world.now)
    assert judgement.actions == (EndProcesses("GPU-1", tuple(left), through_mps=False),)


def test_one_late_answer_is_no_hung_daemon():
    world = World()
    world.gpus["GPU-0"].daemon = "silent"
    world.tick(2)
    world.gpus["GPU-0"].daemon = "running"
    world.tick(20)
    assert world.events == [] and world.as_planned


def test_what_is_being_acted_upon_is_left_alone():
    world = World()
    world.gpus["GPU-0"].victims = {worker.process.pid for worker in world.on("GPU-0")}
    seen = replace(world.seen(), busy=frozenset({"GPU-0"}))
    judgement = judge(world.memory, seen, world.now + 1)
    assert judgement.actions == () and judgement.events == ()


def test_an_unattached_worker_is_looked_at_twice():
    world = World()
    worker = world.workers[0]
    worker.listed = False
    while worker.process not in world.memory.unattached:
        world.tick()
    assert world.ended == []
    worker.listed = True
    world.tick(12)
    assert world.ended == [] and not world.memory.unattached
    worker.listed = False
    world.tick(12)
    assert world.ended == [worker.process] and "worker-unattached" in kinds(world)


def test_a_worker_that_loads_is_never_called_unattached():
    world = World()
    world.kill(0)
    world.tick()
    assert not world.workers[0].ready
    world.gpus["GPU-0"].daemon = "silent"  # it waits for ever, short of the third look
    world.tick(2)
    assert world.ended == []


def test_a_hung_worker_is_ended_two_seconds_before_torchserve_would():
    world = World()
    worker = world.workers[3]
    worker.hung_since = began = world.now
    while not world.ended:
        world.tick()
    assert world.ended == [worker.process]
    assert TIMEOUT - 3 < world.now - began < TIMEOUT
    world.tick(5)
    assert world.memory.restarts["bert"] == {"hung": 1} and world.as_planned


def test_batch_after_batch_is_no_hang():
    world = World()
    for _ in range(int(TIMEOUT)):
        world.workers[3].hung_since = world.now  # another batch
        world.tick(3)
    assert world.ended == [] and world.events == []


def test_a_killed_process_that_takes_its_time_is_neither_ended_nor_told_of_twice():
    world = World()
    world.linger = 5.0
    world.workers[3].hung_since = world.now
    world.tick(int(TIMEOUT) + 15)
    assert kinds(world) == ["worker-hung", "worker-gone", "recovered"] and len(world.ended) == 1


def test_a_crash_loop_is_held_back_where_it_is_and_given_out_again():
    world = World()
    for _ in range(20):
        for slot in (0, 1):
            if slot in world.workers and world.workers[slot].ready:
                world.kill(slot)
        world.tick(6)
    assert set(world.memory.holds) == {0, 1}
    assert "again and again on GPU 0" in world.memory.holds[0].reason
    assert {worker.place.slot for worker in world.workers.values()} == {2, 3, 4}
    assert not world.asleep, "bert has its places on GPU 1"
    world.tick(int(QUIET))
    assert world.as_planned and not world.memory.holds and "released" in kinds(world)


def test_the_second_crash_in_a_row_makes_the_next_one_wait():
    world = World()
    world.kill(2)
    world.tick(6)
    assert not world.memory.holds, "the first comes back as fast as it can"
    world.kill(2)
    world.tick()
    assert set(world.memory.holds) == {2} and world.memory.holds[2].until <= world.now + 2


def test_a_model_without_a_place_is_not_asked_for_any_more():
    world = World()
    for _ in range(5):
        if 2 in world.workers:
            world.kill(2)
        world.tick(8)
    assert world.asleep == {"rank"} and set(world.memory.holds) == {2}
    world.tick(int(QUIET) + 20)
    assert world.as_planned and not world.asleep


def asleep() -> World:
    """A world whose model "rank" crashed until its only place was held back, and then not again."""
    world = World()
    for _ in range(5):
        if 2 in world.workers:
            world.kill(2)
        world.tick(8)
    assert world.asleep == {"rank"} and world.memory.parked
    return world


def test_what_a_guardian_put_to_rest_the_next_one_wakes():
    world = asleep()
    # Its guardian dies; the hold is over when the next one comes, which knows only what is on disk.
    world.memory = Memory(parked=world.memory.parked)
    world.scaled.clear()
    world.tick(10)
    assert world.as_planned and not world.asleep and not world.memory.parked


def test_a_model_that_could_not_be_woken_is_tried_again():
    world = asleep()
    world.deaf = True
    world.tick(int(QUIET) + 20)
    assert not world.memory.holds and world.asleep == {"rank"} and world.memory.parked
    world.deaf = False
    world.tick(int(WAKE_AGAIN) + 10)
    assert world.as_planned and not world.memory.parked


def test_a_timeout_is_learnt_anew_once_all_workers_are_others():
    world = World()

    def learnt() -> list[str]:
        asked = []
        for _ in range(10):
            world.now += 1
            judgement = judge(world.memory, world.seen(), world.now)
            world.memory, world.ask = judgement.memory, judgement.ask
            asked += [action.model for action in judgement.actions if isinstance(action, LearnTimeout)]
            world.torchserve()
        return asked

    assert learnt() == [], "the world has been looked at when it was made"
    for slot in (0, 1, 3):
        world.kill(slot)
    assert learnt() == [], "one of bert's four is who it was"
    world.kill(4)
    assert learnt() == ["bert"]
    assert learnt() == []


def test_a_timeout_that_was_not_answered_is_asked_for_again_after_a_while():
    world, asked = World(), []
    for _ in range(3 * int(WAKE_AGAIN)):
        world.now += 1
        judgement = judge(world.memory, replace(world.seen(), unlearnt=frozenset({"bert"})), world.now)
        world.memory, world.ask = judgement.memory, judgement.ask
        asked += [(action.model, world.now) for action in judgement.actions if isinstance(action, LearnTimeout)]
    assert [model for model, _ in asked] == ["bert"] * len(asked) and len(asked) in (2, 3)
    times = [at for _, at in asked]
    assert all(later - earlier == WAKE_AGAIN for earlier, later in pairwise(times))


def test_one_that_hides_what_it_is_at_is_not_taken_for_one_that_hangs():
    world = World()
    world.workers[3].hung_since = UNKNOWN
    world.tick(2 * int(TIMEOUT))
    assert kinds(world) == [] and world.ended == []


def test_one_that_comes_and_goes_between_two_looks_is_counted():
    world = World()
    world.kill(2)
    for round_ in range(4):
        pid = 5000 + round_
        departed = WorkerSeen(ProcessId(pid, 0), 2, "rank", "1.0", True, "GPU-0", True, 1)
        world.workers.pop(2, None)
        world.now += 1
        judgement = judge(world.memory, replace(world.seen(), departed=(departed,)), world.now)
        world.memory, world.events = judgement.memory, world.events + list(judgement.events)
    assert [event.pid for event in world.events if event.kind == "worker-gone"][1:] == [5000, 5001, 5002, 5003]
    assert "held-back" in kinds(world)


def test_the_model_that_speaks_first_is_blamed_for_faults_of_the_server():
    world = World()
    for _ in range(5):
        struck = world.on("GPU-0")
        world.gpus["GPU-0"].victims = {worker.process.pid for worker in struck}
        # rank's worker learns it first; the others' own words come with the next look
        rank = next(worker for worker in struck if worker.place.model == "rank")
        world.told = [_said(world, worker) for worker in [rank, *struck]]
        world.tick(12)
    assert set(world.memory.holds) == {2}
    assert all(slot in world.workers for slot in (0, 1, 3, 4))


def test_a_fault_that_is_over_before_the_look_is_the_fault_of_the_model_that_speaks_first():
    world = World()
    for _ in range(5):
        struck = sorted(world.on("GPU-0"), key=lambda worker: worker.place.model != "rank")
        assert len(struck) == 3
        world.told = [
            replace(_said(world, worker), time=world.now + 0.005 * place) for place, worker in enumerate(struck)
        ]
        for worker in struck:
            world.kill(worker.place.slot)  # by themselves, so that the server is ACTIVE again
        world.tick(12)
    assert set(world.memory.holds) == {2}, "rank alone"
    assert all(slot in world.workers for slot in (0, 1, 3, 4))
    assert world.memory.counts["server-fault GPU-0"] == 5 and world.ended == []
    assert world.memory.restarts["bert"] == {"server-fault": 10}
    assert "worker-gone" not in kinds(world) and not world.memory.faults


def test_a_second_fault_before_the_first_is_made_good_strikes_nobody_innocent():
    world = World()
    world.asleep = {"rank"}  # it does not come back, so the first fault stays open
    for _ in range(2):
        struck = world.on("GPU-0")
        world.told = [_said(world, worker) for worker in struck]
        for worker in struck:
            world.kill(worker.place.slot)
        world.tick(6)
    assert world.memory.counts["server-fault GPU-0"] == 2 and "worker-gone" not in kinds(world)
    assert set(world.memory.faults["GPU-0"].victims) == {0, 1, 2}
    world.asleep.clear()
    world.tick(12)
    assert world.as_planned and not world.memory.faults


@pytest.mark.parametrize(
    ("cause", "apart", "daemon"),
    [
        ("cuda-error-710", 0.0, "running"),  # it stays with its own client
        ("cuda-error-700", 2.5, "running"),
        ("cuda-error-700", 0.0, "off"),  # without MPS nobody shares anything
    ],
)
def test_what_is_no_fault_of_the_server_counts_for_each(cause, apart, daemon):
    world = World()
    two = [world.workers[slot] for slot in (0, 2)]
    told = tuple(replace(_said(world, w), cause=cause, clock=world.now + apart * n) for n, w in enumerate(two))
    for worker in two:
        world.kill(worker.place.slot)
    seen = world.seen()
    seen = replace(seen, told=told, gpus=tuple(replace(gpu, daemon=daemon) for gpu in seen.gpus))
    judgement = judge(world.memory, seen, world.now + 1)
    assert "GPU-0" not in judgement.memory.faults
    gone = [(event.model, event.cause) for event in judgement.events if event.kind == "worker-gone"]
    assert gone == [("bert", cause), ("rank", cause)]


def _said(world: World, worker) -> Event:
    return Event("worker-fault", "", "GPU-0", worker.place.model, worker.process.pid, "cuda-error-700", clock=world.now)


def test_what_a_worker_says_of_its_end_is_the_cause():
    world = World()
    worker = world.workers[3]
    world.told = [Event("worker-fault", "", "GPU-1", "bert", worker.process.pid, "cuda-error-710", clock=world.now)]
    world.kill(3)
    world.tick(6)
    assert world.memory.restarts == {"bert": {"cuda-error-710": 1}}
    assert [event.cause for event in world.events] == ["cuda-error-710", "cuda-error-710"]


def test_a_lost_gpu_keeps_no_worker_until_it_is_back():
    world = World()
    world.gpus["GPU-0"].lost = True
    world.tick(5)
    assert world.on("GPU-0") == [] and len(world.on("GPU-1")) == 2
    assert set(world.memory.holds) == {0, 1, 2} and world.asleep == {"rank"}
    world.gpus["GPU-0"].lost = False
    world.tick(20)
    assert world.as_planned and kinds(world)[0] == "gpu-lost" and "gpu-back" in kinds(world)


def test_where_torchserve_gave_up_it_is_asked_again():
    world = World()
    world.asleep = {"rank"}  # as far as the judge knows it is awake
    world.kill(2)
    gone = world.now + 1
    asked = []
    for _ in range(int(2.5 * GIVEN_UP)):
        world.now += 1
        judgement = judge(world.memory, world.seen(), world.now)
        world.memory = judgement.memory
        asked += [(action, world.now) for action in judgement.actions]
    revived = [action for action, _ in asked if isinstance(action, ReviveModel)]
    assert revived == [ReviveModel("rank", "1.0", 1, 0, gone)] * 2, (
        "as old at the second time: it may not have been heard"
    )
    assert not any(isinstance(action, ScaleModel) for action, _ in asked)


def test_when_java_is_gone_nobody_is_to_blame():
    world = World()
    world.java = False
    world.workers.clear()
    world.tick(20)
    world.java = True
    world.tick(20)
    assert world.as_planned and world.events == [] and world.memory.restarts == {}


def test_a_fault_whose_workers_never_come_back_is_not_waited_for_for_ever():
    world = World()
    world.gpus["GPU-0"].victims = {worker.process.pid for worker in world.on("GPU-0")}
    world.asleep = {"bert", "rank"}
    world.tick(int(GIVE_UP) + 20)
    assert "not-recovered" in kinds(world) and not world.memory.faults


def test_an_empty_world_is_judged_too():
    judgement = judge(Memory(), Seen(True, (), (), ()), 1.0)
    assert judgement.actions == () and judgement.memory.java_since == 1.0
