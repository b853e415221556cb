"""Slots and seats as held files: never more holders than seats, and a dead holder's place is free."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ts_mps import slots
from ts_mps.activity import UNKNOWN, Activity, Attention
from ts_mps.errors import PlanError
from ts_mps.files import try_lock
from ts_mps.holds import Hold, held_back, hold_back
from ts_mps.paths import Home, InstancePaths
from ts_mps.plan.model import Plan, PlannedGpu, Slot
from ts_mps.seats import holders_told, seat_holders
from ts_mps.slots import Claim, claim
from ts_mps.worker_records import Proof, Share, batch_of, busy, records, sockets, workers

GPUS = ("GPU-00000000-0000-4000-8000-000000000000", "GPU-00000001-0000-4000-8000-000000000001")


def make_plan(*where: tuple[str, str | None, int | None], caps: tuple[int | None, ...] = (4,)) -> Plan:
    """A plan of slots (model, version, position of the GPU), on as many GPUs as there are caps."""
    gpus = tuple(PlannedGpu(i, GPUS[i], "NVIDIA H200", cap, f"/pipe/{i}") for i, cap in enumerate(caps))
    return Plan(
        gpus,
        tuple(
            Slot(number, model, version, None if gpu is None else GPUS[gpu], threads=3)
            for number, (model, version, gpu) in enumerate(where)
        ),
    )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path)


@pytest.fixture
def instance(home: Home) -> InstancePaths:
    return home.instance("default")


def make_home(folder: Path) -> Home:
    here = Home(folder)
    for name in ("default", "second"):
        here.instance(name).slots.mkdir(parents=True)
    for uuid in GPUS:
        here.gpu(uuid).seats.mkdir(parents=True)
    return here


@dataclass(frozen=True)
class Worker:
    """A process that claimed, and what it got: a slot's number and seat, or the refusal's sentence."""

    pid: int
    number: int | None
    seat: int | None
    gpu: str | None
    refusal: str

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def start_worker(home: Home, plan: Plan, model: str, name: str = "default", *, on_gpu: bool = True) -> Worker:
    """Claim in a process of its own, which keeps what it got until it is killed."""
    heard, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            held = claim(home, home.instance(name), plan, model, "1.0", on_gpu=on_gpu, grace=0.0)
            record = held.record
            answer = f"{record.slot.number}|{'' if record.seat is None else record.seat}|{record.slot.gpu or ''}|"
        except PlanError as error:
            answer = f"|||{error}"
        os.write(said, answer.encode())
        os.close(said)
        signal.pause()
        os._exit(0)
    os.close(said)
    with os.fdopen(heard) as stream:
        number, seat, gpu, refusal = stream.read().split("|")
    worker = Worker(pid, int(number) if number else None, int(seat) if seat else None, gpu or None, refusal)
    if refusal:
        worker.kill()
    return worker


@pytest.fixture
def start(home: Home) -> Iterator[object]:
    started: list[Worker] = []

    def begin(plan: Plan, model: str = "m", name: str = "default", **more: bool) -> Worker:
        worker = start_worker(home, plan, model, name, **more)
        if not worker.refusal:
            started.append(worker)
        return worker

    yield begin
    for worker in started:
        try:
            worker.kill()
        except (ProcessLookupError, ChildProcessError):
            continue


class TestClaim:
    def test_planned_slots_in_order_then_an_extra_one_like_them(self, home, instance):
        plan = make_plan(("m", "1.0", 0), ("m", "1.0", 0), ("other", "1.0", 0))
        held = [claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=0.0) for _ in range(3)]
        assert [(h.record.slot.number, h.record.planned, h.record.seat) for h in held] == [
            (0, True, 0),
            (1, True, 1),
            (3, False, 2),
        ]
        assert held[2].record.slot.threads == 3 and held[2].record.slot.gpu == GPUS[0]

    def test_a_version_has_slots_of_its_own(self, home, instance):
        plan = make_plan(("m", "1.0", 0), ("m", "2.0", 0))
        second = claim(home, instance, plan, "m", "2.0", on_gpu=True, grace=0.0)
        assert second.record.slot.number == 1
        other = claim(home, instance, plan, "m", "3.0", on_gpu=True, grace=0.0)
        assert other.record.slot.number == 0, "a version that was not known beforehand (a URL) takes what is free"

    @pytest.mark.parametrize(("on_gpu", "expected"), [(True, GPUS[1]), (False, None)])
    def test_an_unplanned_model_goes_to_the_roomiest_gpu_or_to_the_cpu(self, home, instance, on_gpu, expected):
        plan = make_plan(("m", "1.0", 0), ("m", "1.0", 1), caps=(4, 4))
        first = claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=0.0)
        late = claim(home, instance, plan, "late", "1.0", on_gpu=on_gpu, grace=0.0)
        assert first.record.slot.gpu == GPUS[0]
        assert (late.record.slot.model, late.record.slot.gpu, late.record.planned) == ("late", expected, False)
        assert (late.record.seat is None) == (expected is None)

    def test_an_extra_worker_stays_on_the_gpus_that_its_model_is_planned_on(self, home, instance):
        plan = make_plan(("m", "1.0", 0), caps=(2, 4))
        held = [claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=0.0) for _ in range(2)]
        assert {h.record.slot.gpu for h in held} == {GPUS[0]}
        with pytest.raises(PlanError):
            claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=0.0)

    def test_without_mps_there_are_no_seats(self, home, instance):
        plan = make_plan(("m", "1.0", 0), caps=(None,))
        held = claim(home, instance, plan, "m", "1.0", on_gpu=True)
        assert held.record.seat is None and held.record.slot.gpu == GPUS[0]
        assert seat_holders(home.gpu(GPUS[0])) == ()

    def test_the_refusal_names_gpu_cap_holders_and_remedy_and_keeps_no_slot(self, home, instance):
        plan = make_plan(*[("m", "1.0", 0)] * 4, caps=(3,))
        second = home.instance("second")
        kept: list[Claim] = [
            claim(home, second, make_plan(("n", "1.0", 0), caps=(3,)), "n", "1.0", on_gpu=True),
            *(claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=0.0) for _ in range(2)),
        ]
        with pytest.raises(PlanError) as refused:
            claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=0.0)
        sentence = str(refused.value)
        for part in ("GPU 0 (NVIDIA H200, GPU-00000000)", "3 of 3 MPS clients", "2 x m of instance default"):
            assert part in sentence
        assert "1 x n of instance second" in sentence and "PUT /models/m?min_worker=N" in sentence
        kept[0].release()
        freed = claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=0.0)
        assert (freed.record.slot.number, freed.record.seat) == (2, 0)

    def test_extra_slots_have_a_bound(self, home, instance, monkeypatch):
        monkeypatch.setattr(slots, "EXTRA_SLOTS", 1)
        plan = make_plan(("m", "1.0", None), caps=())
        held = [claim(home, instance, plan, "m", "1.0", on_gpu=False, grace=0.0) for _ in range(2)]
        with pytest.raises(PlanError, match="already has 1 workers beyond its plan"):
            claim(home, instance, plan, "m", "1.0", on_gpu=False, grace=0.0)
        assert len(held) == 2

    def test_a_successor_waits_for_its_predecessors_slot(self, home, instance):
        plan = make_plan(("m", "1.0", 0))
        dying = claim(home, instance, plan, "m", "1.0", on_gpu=True)
        timer = threading.Timer(0.3, dying.release)
        timer.start()
        successor = claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=20.0)
        timer.join()
        assert successor.record.planned and successor.record.slot.number == 0

    def test_an_extra_worker_has_the_limits_of_its_model_and_says_that_it_is_beyond_the_plan(self, home, instance):
        plan = make_plan(("m", "1.0", 0))
        limited = replace(
            plan.slots[0], thread_percentage=50.0, memory_limit="4G", priority=1, cores=(0, 2), sms=66, why="first"
        )
        plan = replace(plan, slots=(limited,))
        first, extra = (claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=0.0) for _ in range(2))
        assert first.record.slot == limited
        assert "beyond the plan" in extra.record.slot.why
        assert extra.record.slot == replace(limited, number=1, why=extra.record.slot.why)
        assert [worker.slot for worker in workers(instance)] == [first.record.slot, extra.record.slot]

    def test_on_another_gpu_an_extra_workers_sms_are_not_known(self, home, instance):
        plan = make_plan(("m", "1.0", 0), ("m", "1.0", 1), caps=(1, 3))
        plan = replace(plan, slots=tuple(replace(slot, thread_percentage=50.0, sms=66) for slot in plan.slots))
        *_, extra = [claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=0.0) for _ in range(3)]
        assert (extra.record.slot.gpu, extra.record.slot.thread_percentage) == (GPUS[1], 50.0)
        assert extra.record.slot.sms == 0


class TestProcesses:
    def test_a_child_that_a_handler_forks_does_not_keep_the_seat(self, home, instance):
        plan = make_plan(("m", "1.0", 0), caps=(1,))
        held = claim(home, instance, plan, "m", "1.0", on_gpu=True)
        child = os.fork()
        if child == 0:
            signal.pause()
        held.release()
        try:
            claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=2.0).release()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    @pytest.mark.parametrize(
        ("written", "told"), [(b'{"instance": "default", "model": "m"}', "1 x m of instance default"), (b"", "1 x ?")]
    )
    def test_a_holder_that_has_only_just_sat_down_is_waited_for(self, home, monkeypatch, written, told):
        gpu = home.gpu(GPUS[0])
        seat = try_lock(gpu.seats / "000")
        assert seat is not None
        monkeypatch.setattr(time, "sleep", lambda seconds: os.pwrite(seat, written, 0))
        assert holders_told(gpu).startswith(told)
        os.close(seat)

    def test_a_dead_holders_slot_and_seat_are_free(self, start, home, instance):
        plan = make_plan(("m", "1.0", 0), caps=(1,))
        first = start(plan)
        assert (first.number, first.seat) == (0, 0)
        refused = start(plan)
        assert "1 of 1 MPS clients" in refused.refusal
        assert [holder["pid"] for holder in seat_holders(home.gpu(GPUS[0]))] == [first.pid]
        first.kill()
        assert seat_holders(home.gpu(GPUS[0])) == () and list(workers(instance)) == []
        again = start(plan)
        assert (again.number, again.seat) == (0, 0)

    def test_a_workers_child_does_not_keep_its_slot(self, home, instance):
        """A handler's own subprocess must not hold the place of a worker that is gone."""
        plan = make_plan(("m", "1.0", 0))
        heard, said = os.pipe()
        worker = os.fork()
        if worker == 0:
            claim(home, instance, plan, "m", "1.0", on_gpu=True)
            os.write(said, str(subprocess.Popen(["sleep", "60"]).pid).encode())
            signal.pause()
        child = int(os.read(heard, 20))
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        try:
            assert claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=0.0).record.slot.number == 0
        finally:
            os.kill(child, signal.SIGKILL)
            os.close(heard)
            os.close(said)

    def test_workers_lists_the_living_by_slot(self, start, home, instance):
        plan = make_plan(("m", "1.0", 0), ("m", "1.0", 0))
        first, second = start(plan), start(plan)
        assert [(w.slot.number, w.pid, w.state) for w in workers(instance)] == [
            (0, first.pid, "loading"),
            (1, second.pid, "loading"),
        ]
        first.kill()
        assert [w.pid for w in workers(instance)] == [second.pid]


class Seats(RuleBasedStateMachine):
    """Workers of two instances come and are killed, in any order, on two GPUs of few seats."""

    CAPS = (2, 3)

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tsm", dir="/tmp"))
        self.home = make_home(self.folder)
        self.plan = make_plan(("a", "1.0", 0), ("a", "1.0", 1), ("b", "1.0", 1), caps=self.CAPS)
        self.living: list[tuple[str, Worker]] = []

    def taken(self) -> Counter[str | None]:
        return Counter(worker.gpu for _, worker in self.living)

    @rule(model=st.sampled_from(["a", "b", "stranger"]), name=st.sampled_from(["default", "second"]))
    def comes(self, model: str, name: str) -> None:
        room = [cap - self.taken()[uuid] for uuid, cap in zip(GPUS, self.CAPS, strict=True)]
        worker = start_worker(self.home, self.plan, model, name)
        if worker.refusal:
            assert min(room) == 0, f"refused with {room} seats free: {worker.refusal}"
            return
        self.living.append((name, worker))
        assert worker.gpu is not None and room[GPUS.index(worker.gpu)] > 0

    @rule(which=st.integers(0, 9))
    def is_killed(self, which: int) -> None:
        if self.living:
            self.living.pop(which % len(self.living))[1].kill()

    @invariant()
    def never_more_holders_than_seats(self) -> None:
        for uuid, cap in zip(GPUS, self.CAPS, strict=True):
            holders = [holder["pid"] for holder in seat_holders(self.home.gpu(uuid))]
            assert len(holders) <= cap
            assert sorted(holders) == sorted(worker.pid for _, worker in self.living if worker.gpu == uuid)

    @invariant()
    def a_slot_has_one_holder_and_a_dead_one_none(self) -> None:
        for name in ("default", "second"):
            listed = {record.slot.number: record.pid for record in workers(self.home.instance(name))}
            mine = [worker for whose, worker in self.living if whose == name]
            assert listed == {worker.number: worker.pid for worker in mine} and len(listed) == len(mine)

    def teardown(self) -> None:
        for _, worker in self.living:
            worker.kill()
        shutil.rmtree(self.folder)


TestSeats = Seats.TestCase
TestSeats.settings = settings(max_examples=15, stateful_step_count=20, suppress_health_check=[HealthCheck.too_slow])


class TestRecord:
    def test_ready_keeps_what_it_got(self, home, instance):
        held = claim(home, instance, make_plan(("m", "1.0", 0)), "m", "1.0", on_gpu=True)
        assert [worker.got for worker in workers(instance)] == [None]
        got = Share(66, 50.0, 4 * 2**30, 1, (0, 1, 5), checked=0.25)
        held.ready(Proof(462, 1.0), got)
        (record,) = workers(instance)
        assert record == held.record and record.got == got

    def test_ready_keeps_the_proof(self, home, instance):
        held = claim(home, instance, make_plan(("m", "1.0", 0)), "m", "1.0", on_gpu=True, socket="/tmp/.ts.sock.9000")
        before, clock = time.time(), time.monotonic()
        (loading,) = workers(instance)
        assert clock - 60 < loading.clock <= clock
        held.ready(Proof(server=462, time=before))
        (record,) = workers(instance)
        assert record == held.record and record.clock >= clock
        assert (record.state, record.proof, record.pid) == ("ready", Proof(462, before), os.getpid())
        assert record.since >= before and record.socket == "/tmp/.ts.sock.9000"

    def test_the_socket_of_a_dead_worker_is_still_known(self, home, instance):
        plan = make_plan(("m", "1.0", 0), ("m", "1.0", 0))
        held = claim(home, instance, plan, "m", "1.0", on_gpu=True, socket="/tmp/.ts.sock.9000")
        claim(home, instance, plan, "m", "1.0", on_gpu=True).release()
        held.release()
        assert sockets(instance) == (Path("/tmp/.ts.sock.9000"),)

    def test_release_ends_the_listing(self, home, instance):
        held = claim(home, instance, make_plan(("m", "1.0", 0)), "m", "1.0", on_gpu=True)
        held.release()
        held.release()
        assert list(workers(instance)) == [] and seat_holders(home.gpu(GPUS[0])) == ()


class TestActivity:
    def test_busy_between_begin_and_end(self, home, instance):
        plan = make_plan(("m", "1.0", None), ("m", "1.0", None), caps=())
        first, second = (claim(home, instance, plan, "m", "1.0", on_gpu=False) for _ in range(2))
        assert busy(instance) == ()
        second.activity.begin()
        assert [worker.slot.number for worker in busy(instance)] == [1]
        first.activity.begin()
        second.activity.end()
        assert [worker.slot.number for worker in busy(instance)] == [0]
        first.release()
        assert busy(instance) == (), "one that died inside a batch is not busy"

    def test_no_file_system_has_a_part_in_it(self, tmp_path):
        page = Activity.create(tmp_path / "page")
        page.begin()
        assert (tmp_path / "page").is_symlink()
        assert (tmp_path / "page").stat().st_nlink == 0, "in no folder of any file system"

    def test_the_page_goes_with_its_worker(self, tmp_path):
        code = (
            "import sys, time; from pathlib import Path; from ts_mps.activity import Activity;"
            "page = Activity.create(Path(sys.argv[1])); page.begin(); print('in', flush=True); time.sleep(60)"
        )
        path = tmp_path / "page"
        worker = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None and worker.stdout.readline() == "in\n"
        assert Activity.is_busy(path) and Activity.taken(path) == 1
        worker.kill()
        worker.communicate()
        assert not Activity.is_busy(path) and Activity.taken(path) == 0
        with pytest.raises(OSError, match="No such"):
            Activity.ask(path, Attention.LISTEN)
        Activity.create(path).begin()
        assert Activity.is_busy(path), "its successor's"

    def test_a_descriptor_of_a_stranger_is_no_page(self, tmp_path):
        """The pid was given to another process, and the descriptor's number is a file or a pipe of its."""
        precious = tmp_path / "precious"
        precious.write_bytes(bytes(Activity._SIZE))
        reader, writer = os.pipe()
        with precious.open("r+b") as stream:
            for number in (stream.fileno(), reader):
                path = tmp_path / "page"
                path.unlink(missing_ok=True)
                path.symlink_to(f"/proc/{os.getpid()}/fd/{number}")
                assert Activity.batch(path) is None
                with pytest.raises(OSError, match="tale"):
                    Activity.ask(path, Attention.REFUSE, 7)
        os.close(reader)
        os.close(writer)
        assert precious.read_bytes() == bytes(Activity._SIZE)

    def test_a_strangers_descriptor_is_not_even_opened(self, tmp_path, monkeypatch):
        """To open a watchdog's device starts it."""
        opened = []
        monkeypatch.setattr(os, "open", lambda *words: opened.append(words))
        with (tmp_path / "precious").open("wb") as stream:
            stream.truncate(Activity._SIZE)
            (tmp_path / "precious").unlink()
            (tmp_path / "page").symlink_to(f"/proc/{os.getpid()}/fd/{stream.fileno()}")
            assert Activity.batch(tmp_path / "page") is None and opened == []

    def test_of_one_that_hides_nobody_knows_that_it_is_idle(self, tmp_path):
        code = (
            "import ctypes, sys, time; from pathlib import Path; from ts_mps.activity import Activity;"
            "page = Activity.create(Path(sys.argv[1])); assert ctypes.CDLL(None).prctl(4, 0) == 0;"  # PR_SET_DUMPABLE
            "print('hides', flush=True); time.sleep(60)"
        )
        path = tmp_path / "page"
        worker = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None and worker.stdout.readline() == "hides\n"
        tmp_path.chmod(0o755)
        child = os.fork()
        if child == 0:
            os.chdir(tmp_path)
            if os.getuid() == 0:
                os.setuid(65534)  # root may look at everything
            here = Path("page")
            unknown = Activity.batch(here) == UNKNOWN and Activity.is_busy(here)
            os._exit(0 if unknown and not Activity.is_parked(here) and Activity.taken(here) == 0 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        worker.kill()
        worker.communicate()

    @pytest.mark.parametrize(("known", "refused"), [(True, errno.EACCES), (False, errno.EINVAL)])
    def test_a_page_on_a_hardened_host_and_on_an_old_one(self, tmp_path, monkeypatch, known, refused):
        """vm.memfd_noexec=2 refuses memory that might be run; a kernel before 6.3 does not know the flag against it."""
        make = os.memfd_create

        def create(name: str, flags: int = os.MFD_CLOEXEC) -> int:
            if bool(flags & 0x8) != known:
                raise OSError(refused, os.strerror(refused))
            return make(name, flags & ~0x8)

        monkeypatch.setattr(os, "memfd_create", create)
        Activity.create(tmp_path / "page").begin()
        assert Activity.is_busy(tmp_path / "page")

    def test_another_process_sees_it_at_once(self, tmp_path):
        page = Activity.create(tmp_path / "page")
        page.begin()
        child = os.fork()
        if child == 0:
            os._exit(0 if Activity.is_busy(tmp_path / "page") else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    @pytest.mark.parametrize("content", [None, b"", b"short"])
    def test_no_page_is_not_busy(self, tmp_path, content):
        if content is not None:
            (tmp_path / "page").write_bytes(content)
        assert not Activity.is_busy(tmp_path / "page")


class TestHolds:
    def test_a_worker_is_refused_with_the_reason_and_takes_no_place_beyond_the_plan(self, home, instance):
        plan = make_plan(("m", "1.0", 0), ("m", "1.0", 0))
        hold_back(instance, {0: Hold("It crashed again and again."), 1: Hold("It crashed.", time.monotonic() + 500)})
        with pytest.raises(PlanError, match="places of model m are held back: It crashed again and again"):
            claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=0.0)
        assert list(workers(instance)) == [] and seat_holders(home.gpu(GPUS[0])) == ()

    def test_the_place_of_one_that_still_dies_is_waited_for_before_a_refusal(self, home, instance):
        plan = make_plan(("m", "1.0", 0), ("m", "1.0", 0))
        hold_back(instance, {0: Hold("It crashed again and again.")})
        dying = claim(home, instance, plan, "m", "1.0", on_gpu=True)
        timer = threading.Timer(0.3, dying.release)
        timer.start()
        assert claim(home, instance, plan, "m", "1.0", on_gpu=True).record.slot.number == 1
        timer.join()

    def test_other_places_and_other_models_are_given_out(self, home, instance):
        plan = make_plan(("m", "1.0", 0), ("m", "1.0", 0), ("other", "1.0", 0))
        hold_back(instance, {0: Hold("no")})
        assert claim(home, instance, plan, "m", "1.0", on_gpu=True).record.slot.number == 1
        assert claim(home, instance, plan, "other", "1.0", on_gpu=True).record.slot.number == 2

    def test_who_is_in_a_place_that_is_held_back_stays_and_scaling_up_works(self, home, instance):
        plan = make_plan(("m", "1.0", 0))
        first = claim(home, instance, plan, "m", "1.0", on_gpu=True)
        hold_back(instance, {0: Hold("no")})
        assert [worker.slot.number for worker in workers(instance)] == [0]
        assert not claim(home, instance, plan, "m", "1.0", on_gpu=True, grace=0.0).record.planned
        assert first.record.planned

    def test_a_short_hold_is_waited_for(self, home, instance):
        plan = make_plan(("m", "1.0", 0))
        until = time.monotonic() + 0.4
        hold_back(instance, {0: Hold("a pause", until)})
        assert claim(home, instance, plan, "m", "1.0", on_gpu=True).record.slot.number == 0
        assert time.monotonic() >= until and held_back(instance) == {}

    def test_the_file_is_no_record(self, home, instance):
        hold_back(instance, {0: Hold("no", None)})
        assert list(workers(instance)) == [] and sockets(instance) == ()
        assert held_back(instance) == {0: Hold("no", None)}

    def test_the_dead_are_still_on_record(self, home, instance):
        held = claim(home, instance, make_plan(("m", "1.0", 0)), "m", "1.0", on_gpu=True)
        assert [living for _, living in records(instance)] == [True]
        held.activity.begin()
        assert batch_of(instance, 0) == 1
        held.activity.end()
        assert batch_of(instance, 0) is None
        held.release()
        assert [(record.pid, living) for record, living in records(instance)] == [(os.getpid(), False)]
