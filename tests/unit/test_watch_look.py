"""The watch's look: what it reads each second, when it asks a daemon, and what it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support import eventually, simulated_gpu

from ts_mps import events
from ts_mps.activity import UNKNOWN
from ts_mps.errors import MpsError
from ts_mps.events import Event, Tail, record
from ts_mps.files import read_json, write_json
from ts_mps.gpu.presence import Presence, why_lost
from ts_mps.guardian import problems
from ts_mps.guardian.watch.judge import judge
from ts_mps.guardian.watch.look import ASK_EVERY, Looker
from ts_mps.guardian.watch.memory import Fault, Memory
from ts_mps.guardian.watch.seen import GpuSeen, Place, Seen, WorkerSeen
from ts_mps.guardian.watch.show import watched
from ts_mps.guardian.watched import load_watched
from ts_mps.holds import Hold
from ts_mps.mps import daemon as daemons
from ts_mps.mps.control import Control
from ts_mps.paths import Home
from ts_mps.plan.model import Plan, PlannedGpu, Slot
from ts_mps.processes import ProcessId, myself
from ts_mps.slots import claim

UUID = str(simulated_gpu()["uuid"])


@pytest.fixture
def home(short_dir: Path) -> Home:
    here = Home(short_dir)
    here.instance("default").slots.mkdir(parents=True)
    here.gpu(UUID).seats.mkdir(parents=True)
    return here


@pytest.fixture
def running(home: Home, simulator: dict[str, str]):
    """A simulated daemon with its server."""
    from ts_mps.gpu.inventory import read_inventory

    lease = daemons.acquire(read_inventory().gpus[0], home.gpu(UUID), "default", environ=simulator)
    yield lease
    lease.release()


def plan(home: Home, workers: int = 1) -> Plan:
    gpu = PlannedGpu(0, UUID, "NVIDIA H200", 48, str(home.gpu(UUID).pipe))
    return Plan((gpu,), tuple(Slot(number, "m", "1.0", UUID) for number in range(workers)))


def looker(home: Home, lease, now: float) -> Looker:
    return Looker(home, home.instance("default"), plan(home), {UUID: lease.daemon}, now)


def test_a_daemon_is_asked_now_and_then_and_at_once_on_a_hint(home, running, monkeypatch):
    asked = []
    servers = Control.servers
    monkeypatch.setattr(Control, "servers", lambda self: asked.append(1) or servers(self))
    now = time.monotonic()
    look = looker(home, running, now)
    first = look.look(java=True, now=now)
    assert len(asked) == 1 and first.gpus[0].answers and first.gpus[0].server == "ACTIVE"
    for second in range(1, int(ASK_EVERY)):
        seen = look.look(java=True, now=now + second)
        assert not seen.gpus[0].asked and seen.gpus[0].servers == first.gpus[0].servers
    assert len(asked) == 1
    look.look(java=True, now=now + ASK_EVERY)
    assert len(asked) == 2
    look.look(java=True, now=now + ASK_EVERY + 1, ask={UUID})
    assert len(asked) == 3
    held = claim(home, home.instance("default"), plan(home), "m", "1.0", on_gpu=True)
    assert look.look(java=True, now=now + ASK_EVERY + 2).gpus[0].asked, "a worker came"
    assert not look.look(java=True, now=now + ASK_EVERY + 3).gpus[0].asked
    held.ready(None)
    assert look.look(java=True, now=now + ASK_EVERY + 4).gpus[0].asked, "it is ready"
    log = Path(running.daemon.log) / "server.log"
    log.write_text("Server is handling a fatal GPU error.\n")
    look.look(java=True, now=now + ASK_EVERY + 5)
    log.write_text("Server is handling a fatal GPU error.\n" * 2)
    assert look.look(java=True, now=now + ASK_EVERY + 6).gpus[0].asked, "the server wrote"
    assert not look.look(java=True, now=now + ASK_EVERY + 7, ask={UUID}, busy=frozenset({UUID})).gpus[0].asked
    held.release()
    assert not look.look(java=True, now=now + ASK_EVERY + 8, busy=frozenset({UUID})).gpus[0].asked
    assert look.look(java=True, now=now + ASK_EVERY + 9).gpus[0].asked, "it went while nobody might ask"


def test_a_fault_shows_with_the_clients_that_nobody_else_ends(home, running):
    """A child of a worker that uses CUDA is a client with a dead context too."""
    instance = home.instance("default")
    held = claim(home, instance, plan(home), "m", "1.0", on_gpu=True)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    clients = running.pipe / "sim-clients"
    clients.mkdir()
    for pid in (os.getpid(), child.pid, 1):
        (clients / str(pid)).touch()
    (running.pipe / "sim-fault").write_text(str(child.pid))
    now = time.monotonic()
    gpu = looker(home, running, now).look(java=True, now=now).gpus[0]
    assert gpu.server == "FAULT" and {os.getpid(), child.pid} <= gpu.clients
    assert [process.pid for process in gpu.strangers] == [child.pid]
    child.kill()
    child.wait()
    (clients / str(os.getpid())).unlink()
    (clients / "1").unlink()
    held.release()


def test_a_dead_daemon_is_seen_without_asking(home, running):
    now = time.monotonic()
    look = looker(home, running, now)
    assert look.look(java=True, now=now).gpus[0].daemon == "running"
    os.kill(running.daemon.pid, 9)
    time.sleep(0.2)
    seen = look.look(java=True, now=now + 1).gpus[0]
    assert seen.daemon == "gone" and not seen.answers
    again = running.ensure()
    fresh = Looker(home, home.instance("default"), plan(home), {UUID: again}, now + 2)
    assert fresh.look(java=True, now=now + 2).gpus[0].answers


def test_a_lost_gpu(home, running, short_dir, monkeypatch):
    monkeypatch.setenv("SIM_NVML_LOST", str(short_dir / "lost"))
    assert why_lost(UUID) == ""
    (short_dir / "lost").write_text(UUID)
    assert "Xid 79" in why_lost(UUID)
    assert "does not list it" in why_lost("GPU-of-another-machine")
    now = time.monotonic()
    assert "Xid 79" in looker(home, running, now).look(java=True, now=now).gpus[0].lost
    monkeypatch.setenv("SIM_GPUS", "driver not loaded")
    assert why_lost(UUID) == "the driver is not loaded"


def test_a_driver_that_does_not_return_holds_nobody_up():
    asked, returns = [], threading.Event()

    def ask(uuid: str) -> str:
        asked.append(uuid)
        assert uuid == "well" or returns.wait(30)
        return f"{uuid} is lost"

    presence = Presence(ask, wait=0.2)
    began = time.monotonic()
    assert [presence.why_lost("stuck") for _ in range(50)] == [""] * 50
    assert time.monotonic() - began < 5 and asked == ["stuck"]
    assert presence.why_lost("well") == "well is lost"
    returns.set()
    assert eventually(lambda: presence.why_lost("stuck") == "stuck is lost")


def test_news_from_now_on_and_each_once(home):
    paths = home.instance("default")
    record(paths, Event("worker-fault", "before"))
    tail = Tail(paths, kept=False)
    assert list(tail.news()) == []
    record(paths, Event("worker-fault", "new", pid=7))
    with paths.events.open("a") as stream:
        stream.write('{"kind": "worker-fault", "text": "half a li')
    assert [event.text for event in tail.news()] == ["new"]
    with paths.events.open("a") as stream:
        stream.write('ne"}\nno JSON\n')
    assert [event.text for event in tail.news()] == ["half a line"]
    assert list(tail.news()) == []
    record(paths, Event("worker-fault", "just before the turn-over"))
    paths.events.replace(events.turned_over(paths.events))
    record(paths, Event("worker-fault", "after the turn-over"))
    assert [event.text for event in tail.news()] == ["just before the turn-over", "after the turn-over"]
    assert list(tail.news()) == []


def test_a_pid_used_again_is_not_the_worker(home):
    paths = home.instance("default")
    held = claim(home, paths, plan(home), "m", "1.0", on_gpu=False)
    look = Looker(home, paths, plan(home), {}, time.monotonic())
    (worker,) = look.look(java=True, now=1.0).workers
    assert worker.process == myself()
    held.release()
    record_file = paths.slots / "000.json"
    value = read_json(record_file)
    write_json(record_file, {**value, "started": value["started"] - 1})
    (gone,) = look.look(java=True, now=2.0).departed
    assert gone.process == ProcessId(os.getpid(), myself().started - 1), "although its pid lives"


def test_what_is_shown_is_what_was_seen_and_remembered(home, running):
    instance = home.instance("default")
    now = time.monotonic()
    look = looker(home, running, now)
    seen = look.look(java=True, now=now)
    memory = Memory(holds={0: Hold("It crashed.")}, restarts={"m": {"died": 2}}, counts={f"server-fault {UUID}": 1})
    watched(memory, seen, java_restarts=3, took=0.01).save(instance)
    shown = load_watched(instance)
    assert shown is not None and shown.java and shown.java_restarts == 3 and now <= shown.clock <= time.monotonic()
    assert (shown.gpus[0].daemon, shown.gpus[0].server, shown.gpus[0].cap) == ("running", "ACTIVE", 48)
    (model,) = shown.models
    assert (model.planned, model.ready, model.attached) == (1, 0, 0)
    assert model.held == {"It crashed.": 1} and model.restarts == {"died": 2}
    assert shown.faults == {f"server-fault {UUID}": 1}


@pytest.mark.parametrize(
    ("daemon", "fault", "lost", "attached"),
    [
        ("running", None, "", 1),
        ("adopted", None, "", 1),
        ("silent", None, "", 1),
        ("silent", "daemon-hung", "", 0),
        ("gone", "daemon-gone", "", 0),
        ("running", "gpu-lost", "It fell off the bus.", 0),
        ("off", None, "", 2),
    ],
)
def test_nobody_is_shown_as_a_client_of_a_daemon_that_says_nothing(daemon, fault, lost, attached):
    """Its last list is of before the fault, when all were attached."""
    gpu = GpuSeen(UUID, 0, daemon, server="ACTIVE", clients=frozenset({10, 99}), cap=48, lost=lost)
    workers = tuple(WorkerSeen(ProcessId(10 + n, 1), n, "m", "1.0", True, UUID, True) for n in range(2))
    seen = Seen(True, (gpu,), workers, tuple(Place(n, "m", "1.0", UUID) for n in range(2)))
    memory = Memory(faults={UUID: Fault(fault, 1.0)} if fault else {})
    shown = watched(memory, seen, java_restarts=0, took=0.0)
    assert (shown.models[0].ready, shown.models[0].attached) == (2, attached)
    assert daemon == "off" or shown.gpus[0].clients == (2 if attached else 0)


def test_workers_that_hide_what_they_are_at_are_counted_and_told():
    worker = WorkerSeen(ProcessId(10, 1), 0, "m", "1.0", True, UUID, True)
    places = tuple(Place(n, "m", "1.0", UUID) for n in range(3))
    seen = Seen(True, (), (worker, *(replace(worker, slot=n, batch=UNKNOWN) for n in (1, 2))), places)
    shown = watched(Memory(), seen, java_restarts=0, took=0.0)
    assert shown.models[0].hidden == 2
    (problem,) = problems.of_watch(shown, shown.clock)
    assert "(2 of model m)" in problem and "a hang is left to TorchServe" in problem


WORKERS = """
import sys, time
from pathlib import Path
from ts_mps.paths import Home
from ts_mps.plan.model import Plan, PlannedGpu, Slot
from ts_mps.slots import claim
from ts_mps.worker_records import Proof
home = Home(Path(sys.argv[1]))
gpu = PlannedGpu(0, sys.argv[2], "NVIDIA H200", 48, "/pipe")
plan = Plan((gpu,), tuple(Slot(n, "m", "1.0", gpu.uuid) for n in range(48)))
held = [claim(home, home.instance("default"), plan, "m", "1.0", on_gpu=True) for _ in plan.slots]
for one in held:
    one.ready(Proof(1, time.time()))
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_look_at_48_workers_costs_less_than_one_percent_of_a_core(home):
    """Once a second; the questions to the daemons, one process each ten seconds and GPU, come on top."""
    paths = home.instance("default")
    command = [sys.executable, "-c", WORKERS, str(home.root), UUID]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "ready\n"
    now = time.monotonic()
    look, memory = Looker(home, paths, plan(home, 48), {}, now), Memory()
    turns, spent = 8, []
    for part in range(5):  # the first fills caches; and on a core that others share even CPU time varies
        began = time.process_time()
        for turn in range(part * turns, (part + 1) * turns):
            seen = look.look(java=True, now=now + turn * 0.01)
            memory = judge(memory, seen, now + turn).memory
            watched(memory, seen, java_restarts=0, took=0.0).save(paths)
        spent.append((time.process_time() - began) / turns)
    holder.communicate()
    assert len(seen.workers) == 48
    assert min(spent) < 0.010, f"{1000 * min(spent):.1f} ms a look"


@pytest.mark.parametrize("error", [MpsError("no control program"), OSError(24, "Too many open files")])
def test_without_a_control_program_or_a_process_to_be_had_the_look_goes_on(home, running, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    now = time.monotonic()
    look = looker(home, running, now)
    with monkeypatch.context() as patched:
        patched.setattr("ts_mps.guardian.watch.look.Control", fail)
        (gpu,) = look.look(java=True, now=now).gpus
        assert (gpu.daemon, gpu.asked, gpu.answers) == ("silent", True, False)
    assert look.look(java=True, now=now + 1).gpus[0].answers, "asked again at once"


def test_news_of_a_file_that_was_renamed_by_its_date(home):
    """As logrotate does with dateext; and the one that writes may hold it open."""
    paths = home.instance("default")
    record(paths, Event("worker-fault", "early"))
    tail = Tail(paths, kept=False)
    record(paths, Event("worker-fault", "late"))
    dated = paths.events.rename(paths.events.with_name("events.jsonl-20261121"))
    assert [event.text for event in tail.news()] == ["late"], "nobody has written since"
    with dated.open("a") as stream:
        stream.write(json.dumps(Event("worker-fault", "later").as_json()) + "\n")
    record(paths, Event("worker-fault", "after"))
    assert [event.text for event in tail.news()] == ["later", "after"]
    assert list(tail.news()) == []
    tail.close()


def test_what_is_kept_is_read_although_it_is_turned_over_at_that_moment(home):
    paths = home.instance("default")
    record(paths, Event("first", ""))
    paths.events.replace(events.turned_over(paths.events))
    record(paths, Event("second", ""))
    tail = Tail(paths, kept=True)
    paths.events.replace(events.turned_over(paths.events))
    record(paths, Event("third", ""))
    assert [event.kind for event in tail.news()] == ["first", "second", "third"]
    tail.close()


def test_news_after_the_file_was_cut_short(home):
    paths = home.instance("default")
    for number in range(3):
        record(paths, Event("worker-fault", "", model="m", pid=number))
    tail = Tail(paths, kept=False)
    os.truncate(paths.events, 0)
    record(paths, Event("worker-fault", "", model="m", pid=9))
    assert [event.pid for event in tail.news()] == [9]


def test_two_writers_at_the_limit_turn_the_events_over_once(home, monkeypatch):
    paths = home.instance("default")
    record(paths, Event("first", ""))
    lock = events.try_lock

    def another_is_faster(path):
        monkeypatch.setattr(events, "try_lock", lock)
        record(paths, Event("second", ""))
        monkeypatch.setattr(events, "_LONGEST", 2**20)  # what it began is not full again
        return lock(path)

    monkeypatch.setattr(events, "_LONGEST", 10)
    monkeypatch.setattr(events, "try_lock", another_is_faster)
    record(paths, Event("third", ""))
    assert [event.kind for event in events.recorded(paths)] == ["first", "second", "third"]
