"""The load itself: real Locust in processes of its own against a small server that can be told to misbehave."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import requests
from load_server import Manners, load_server
from support import hear_signals

from ts_mps.bench.histogram import percentile, total, within
from ts_mps.bench.load import LoadError, Spec, generate, record_references, standby, write_bodies
from ts_mps.bench.load.arrivals import arrivals
from ts_mps.bench.records import Load
from ts_mps.errors import PreflightError, UsageError
from ts_mps.profile.messages import Request

ROOT = Path(__file__).resolve().parents[2]
LOCUSTFILE = ROOT / "benchmarks" / "locustfile.py"
#: Seconds that Locust takes beside the load and its timeout, on a machine that does other things as well.
BESIDE_S = 25.0


def closed(connections: int = 4, seconds: float = 1.0) -> Load:
    return Load("closed", connections, 0.0, seconds, 0.5, 1)


def poisson(rate: float, seconds: float = 2.0, kind: str = "poisson") -> Load:
    return Load(kind, 0, rate, seconds, 0.5, 1)


@pytest.fixture
def bodies(tmp_path: Path) -> Path:
    return write_bodies(tmp_path / "bodies", [Request(b"x" * (10 * size), "text/plain") for size in range(1, 9)])


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Every test ends without a process of Locust."""
    before = set(generators())
    yield
    deadline = time.monotonic() + 5
    while (left := set(generators()) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def generators() -> list[psutil.Process]:
    """Locust's living processes that came from this one."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = f"PYTEST_LOAD={os.getpid()}" in Path(f"/proc/{process.pid}/environ").read_text()
            if mine and process.status() != psutil.STATUS_ZOMBIE and "locustfile.py" in " ".join(process.cmdline()):
                found.append(process)
        except (OSError, psutil.Error):
            continue
    return found


@pytest.fixture(autouse=True)
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_LOAD", str(os.getpid()))
    # What a user's shell may hold must not change what is sent.
    monkeypatch.setenv("LOCUST_RUN_TIME", "1s")


def spec(url: str, load: Load, bodies: Path, **changes: object) -> Spec:
    return replace(Spec(url, "/predictions/x", load, bodies, timeout=5.0), **changes)  # type: ignore[arg-type]


def test_a_closed_loop_keeps_its_connections_busy(bodies: Path) -> None:
    with load_server(Manners(delay=0.05)) as (url, _):
        found = generate(spec(url, closed(8, 2.0), bodies), [])
    # 8 connections, each 50 ms and a little: at most 160 per second, and not far below.
    assert 110 <= found.requests_per_second <= 161
    assert found.sent == found.answered == total(found.histogram) == sum(found.per_second)
    assert len(found.per_second) == 2 and min(found.per_second) > 90
    assert 50 <= percentile(found.histogram, 50) < 70
    assert not found.void and not found.errors and found.behind_ms == 0 and found.compared == 0
    assert 0 < found.generator_cores < 1 and found.generator_limit == len(os.sched_getaffinity(0))


def test_processes_share_connections_and_count_together(bodies: Path) -> None:
    with load_server(Manners(delay=0.05)) as (url, _):
        found = generate(spec(url, closed(9, 2.0), bodies, processes=3), [min(os.sched_getaffinity(0))])
    assert not found.void
    assert 120 <= found.requests_per_second <= 181
    assert found.sent == found.answered == total(found.histogram) == sum(found.per_second)
    assert found.generator_limit == 1


@pytest.mark.parametrize(("kind", "processes"), [("poisson", 1), ("poisson", 2), ("constant", 2)])
def test_an_open_loop_sends_exactly_what_was_planned(bodies: Path, kind: str, processes: int) -> None:
    load = poisson(150.0, kind=kind)
    planned = [instant for _, instant in itertools.islice(arrivals(kind, load.rate, load.seed), 5000)]
    counted = sum(load.warm_up <= instant < load.warm_up + load.seconds for instant in planned)
    with load_server(Manners(delay=0.02)) as (url, _):
        found = generate(spec(url, load, bodies, processes=processes), [])
    # An instant on the edge may fall to either side by the rounding of the clocks.
    assert abs(found.sent - counted) <= 1 and found.answered == found.sent == total(found.histogram)
    assert found.behind_ms > 0
    assert 20 <= percentile(found.histogram, 50) < 40


def wait_for_generators(count: int) -> None:
    """Wait until so many processes of Locust are there, and workers have found their master."""
    deadline = time.monotonic() + 20
    while len(generators()) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(generators()) == count
    time.sleep(3)


def test_processes_that_stand_by_send_nothing_until_they_are_told_and_then_at_once(bodies: Path) -> None:
    load = closed(4, 1.0)
    core = min(os.sched_getaffinity(0))
    with load_server(Manners(delay=0.02)) as (url, _), standby(load, 2, [core]) as waiting:
        wait_for_generators(3)
        assert all(set(process.cpu_affinity() or ()) == {core} for process in generators())
        told = time.time()
        found = waiting.send(spec(url, load, bodies, processes=2))
        ended = time.time()
        assert not found.void and found.answered > 50
        # What Locust takes to start is over; half a second is planned ahead so that all begin together.
        assert 0.5 <= found.began - load.warm_up - told < 1.5
        assert ended - found.began - load.seconds < 1.0
        assert not generators(), "they are gone as soon as the result is there"


def test_processes_that_stand_by_and_are_not_needed_are_ended(bodies: Path) -> None:
    with standby(closed(), 2, []):
        wait_for_generators(3)
    assert not generators()


def test_a_process_that_dies_while_it_stands_by(bodies: Path) -> None:
    with load_server() as (url, _), standby(closed(4, 60.0), 2, []) as waiting:
        wait_for_generators(3)
        max(generators(), key=lambda process: process.create_time()).kill()
        with pytest.raises(LoadError, match="Locust ended without a result"):
            waiting.send(spec(url, closed(4, 60.0), bodies, processes=2))


def test_a_generator_that_dies_while_it_stands_by(bodies: Path) -> None:
    with load_server() as (url, _), standby(closed(), 1, []) as waiting:
        wait_for_generators(1)
        generators()[0].kill()
        with pytest.raises(LoadError, match="Locust ended without a result: exit status -9"):
            waiting.send(spec(url, closed(), bodies))


def test_a_stall_of_the_server_is_in_the_latencies_of_an_open_loop(bodies: Path) -> None:
    stalling = Manners(stall_at=1.0, stall=1.0)
    with load_server(stalling) as (url, _):
        found = generate(spec(url, poisson(100.0, 4.0, "constant"), bodies), [])
    # A quarter of the requests was planned during the stall, and waited for half a second on average.
    assert found.answered == found.sent >= 399
    waited = found.answered - within(found.histogram, 100)
    assert 70 <= waited <= 115
    assert 900 < percentile(found.histogram, 99) < 1100
    assert 400 < percentile(found.histogram, 88) < 700
    with load_server(stalling) as (url, _):
        blind = generate(spec(url, closed(2, 4.0), bodies), [])
    # The closed loop sent nothing meanwhile, and so saw nothing of it: what coordinated omission is.
    assert percentile(blind.histogram, 99) < 100 < 900 < percentile(blind.histogram, 100)


def test_an_overloaded_server_does_not_take_the_generator_with_it(bodies: Path) -> None:
    with load_server(Manners(silent=True)) as (url, _):
        found = generate(spec(url, poisson(4000.0, 1.5), bodies, timeout=4.0), [])
    assert found.answered == 0 and found.sent == pytest.approx(6000, rel=0.1)
    assert set(found.errors) == {"connection", "timeout"}
    # Of 8,000 in all, 4,000 fit; the first 2,000 of them were sent during the warm-up.
    assert found.errors["timeout"] == pytest.approx(2000, rel=0.2)


def test_errors_are_told_apart(bodies: Path) -> None:
    with load_server(Manners(statuses=(200, 503, 507, 400))) as (url, _):
        found = generate(spec(url, closed(), bodies), [])
    assert set(found.errors) == {"503", "507", "400"} == set(found.first_errors)
    assert found.first_errors["507"] == '{"code": 507, "message": "no"}'
    assert found.sent == found.answered + sum(found.errors.values())
    assert found.answered == pytest.approx(found.sent / 4, rel=0.3)


def test_wrong_answers_are_seen_and_other_last_digits_are_not(bodies: Path, tmp_path: Path) -> None:
    for manners, wrong in ((Manners(answer="echo", jitter=0.001), 0), (Manners(answer="echo", wrong_every=10), 0.1)):
        told: Callable[[str], Spec] = lambda url: spec(  # noqa: E731
            url, closed(), bodies, check="reference", references=tmp_path / "answers.json", token="secret"
        )
        # Recorded from a server that is right.
        with load_server(replace(manners, wrong_every=0)) as (url, _):
            record_references(told(url))
        with load_server(replace(manners, delay=0.005)) as (url, _):
            found = generate(told(url), [])
        assert found.errors.get("wrong answer", 0) == pytest.approx(wrong * found.sent, rel=0.3)
        assert found.sent >= found.compared > 0.5 * found.sent > 0
        if wrong:
            assert found.first_errors["wrong answer"].startswith("score: 123.0 instead of ")


def test_an_empty_answer_is_wrong(bodies: Path) -> None:
    with load_server(Manners(answer="")) as (url, _):
        found = generate(spec(url, closed(), bodies), [])
    assert found.answered == 0 and set(found.errors) == {"wrong answer"}


@pytest.mark.parametrize("load", [closed(), poisson(50.0)], ids=["closed", "open"])
def test_nobody_listens(bodies: Path, load: Load) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found = generate(spec(f"http://127.0.0.1:{taken.getsockname()[1]}", load, bodies), [])
    assert found.answered == 0 and set(found.errors) == {"connection"} and not found.per_second[0]
    assert "refused" in found.first_errors["connection"]
    # Connections that fail are not tried again and again at once.
    assert found.sent < 200


@pytest.mark.parametrize("load", [closed(), poisson(50.0)], ids=["closed", "open"])
@pytest.mark.parametrize("manners", [Manners(silent=True), Manners(drip=True)], ids=["never", "byte by byte"])
def test_a_server_that_does_not_answer(bodies: Path, load: Load, manners: Manners) -> None:
    began = time.monotonic()
    with load_server(manners) as (url, _):
        found = generate(spec(url, load, bodies, timeout=1.0), [])
    assert time.monotonic() - began < load.warm_up + load.seconds + 1.0 + BESIDE_S
    assert found.answered == 0 and set(found.errors) == {"timeout"}
    assert found.errors["timeout"] >= 4 and found.first_errors["timeout"] == "no answer within 1 s"


@pytest.mark.parametrize("load", [closed(), poisson(50.0)], ids=["closed", "open"])
def test_a_server_that_closes_in_the_middle_of_an_answer(bodies: Path, load: Load) -> None:
    with load_server(Manners(cut=True)) as (url, _):
        found = generate(spec(url, load, bodies), [])
    assert found.answered == 0 and set(found.errors) == {"connection"}


def test_a_server_that_dies_in_the_middle(bodies: Path) -> None:
    load = closed(4, 6.0)
    with load_server(Manners(delay=0.02)) as (url, process), standby(load, 2, []) as waiting:
        wait_for_generators(3)
        timer = threading.Timer(3.5, process.kill)
        timer.start()
        found = waiting.send(spec(url, load, bodies, processes=2))
        timer.cancel()
    assert found.answered > 50 and found.errors["connection"] > 4
    assert found.per_second[-1] == 0


def test_interrupted(bodies: Path) -> None:
    began = time.monotonic()
    with load_server() as (url, _), pytest.raises(KeyboardInterrupt):
        generate(spec(url, closed(4, 60.0), bodies, processes=2), [], interrupted=lambda: time.monotonic() - began > 3)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_ending_the_process_that_asked_ends_the_load(bodies: Path, signum: int) -> None:
    code = (
        "import sys; from pathlib import Path; from ts_mps.bench.load import Spec, generate\n"
        "from ts_mps.bench.records import Load\n"
        "generate(Spec(sys.argv[1], '/x', Load('closed', 4, 0.0, 60.0, 0.0, 1), Path(sys.argv[2]), 2), [])"
    )
    with load_server() as (url, _):
        command = [sys.executable, "-c", code, url, str(bodies)]
        asking = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, preexec_fn=hear_signals)
        deadline = time.monotonic() + 20
        while len(generators()) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(generators()) == 3  # the master and two that make load
        asking.send_signal(signum)
        _, said = asking.communicate(timeout=10)
    assert asking.returncode == -signum
    assert (b"KeyboardInterrupt" in said) is (signum == signal.SIGINT)


@pytest.mark.parametrize(
    ("processes", "which", "signum", "why"),
    [
        (2, slice(2, 3), signal.SIGKILL, "A process of the load generator has died or left."),
        # All at once, as when memory runs out: Locust then stops by itself, as if that had been asked of it.
        (2, slice(1, 3), signal.SIGKILL, "A process of the load generator has died or left."),
        (2, slice(2, 3), signal.SIGTERM, "A process of the load generator has died or left."),
        (2, slice(1), signal.SIGTERM, "The load was stopped before its end."),
        (1, slice(1), signal.SIGTERM, "The load was stopped before its end."),
    ],
    ids=["one", "all", "one leaves", "the master is stopped", "the only one is stopped"],
)
def test_locust_that_ends_early_is_an_error_with_the_end_of_its_log(
    bodies: Path, processes: int, which: slice, signum: signal.Signals, why: str
) -> None:
    with load_server() as (url, server):

        def kill() -> None:
            for process in _at_work(server)[which]:
                process.send_signal(signum)

        killer = threading.Thread(target=kill)
        killer.start()
        began = time.monotonic()
        with pytest.raises(LoadError, match="Locust ended without a result") as caught:
            generate(spec(url, closed(4, 60.0), bodies, processes=processes), [])
        killer.join()
    assert why in caught.value.details
    assert time.monotonic() - began < 30


def _at_work(server: subprocess.Popen[bytes], seconds: float = 2.0) -> list[psutil.Process]:
    """Locust's processes in the order in which they began, the master first, so long after the first request."""
    assert server.stdout is not None and server.stdout.readline() == b"asked\n"
    time.sleep(seconds)
    return sorted(generators(), key=lambda process: process.create_time())


def test_what_cannot_be_sent_is_refused(bodies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = spec("http://127.0.0.1:1", closed(), bodies)
    with pytest.raises(UsageError, match=r"cannot use the cores \[4096\]"):
        generate(good, [4096])
    with pytest.raises(UsageError, match="needs an end"):
        generate(replace(good, load=closed(seconds=float("inf"))), [])
    with pytest.raises(PreflightError, match="no folder"):
        generate(replace(good, bodies=tmp_path / "none"), [])
    with monkeypatch.context() as changed, pytest.raises(PreflightError, match="Locust is not installed"):
        changed.setitem(sys.modules, "locust", None)
        generate(good, [])
    missing = replace(good, check="reference", references=tmp_path / "none.json")
    with pytest.raises(LoadError) as caught:
        generate(missing, [])
    assert "No reference answer could be recorded" in caught.value.details


def test_what_the_generator_itself_can_do(bodies: Path, record_property: Callable[[str, object], None]) -> None:
    with load_server() as (url, _):
        found = generate(spec(url, closed(16, 2.0), bodies), [])
    record_property("requests_per_second", round(found.requests_per_second))
    per_core = found.requests_per_second / found.generator_cores
    print(f"\none process: {found.requests_per_second:.0f} requests/s, {1e6 / per_core:.0f} us of CPU each")
    # About 10,000 per second and core where it was written; an order of magnitude less would be what is measured.
    assert per_core > 2000


def locust(*arguments: str) -> list[str]:
    """The command line of Locust as its users know it, in a folder where nothing of ours is."""
    return [str(Path(sys.executable).parent / "locust"), "-f", str(LOCUSTFILE), *arguments]


#: Seconds and requests per second of the table at the end.
_COUNTED = re.compile(r"Counted for (\d\.\d) s .*\n  (\d+\.\d) requests/s answered")


def _processes(count: int) -> list[str]:
    """Options for a master and so many processes that make load; none for one."""
    port = str(free_port())
    return ["--processes", str(count), "--master-port", port, "--master-bind-port", port] if count > 1 else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCUST_RUN_TIME")
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.mark.parametrize("load", ["closed", "poisson"])
def test_the_locustfile_by_itself(tmp_path: Path, environ: None, load: str) -> None:
    (tmp_path / "payload.json").write_text("{}")
    with load_server(Manners(answer="echo", delay=0.02)) as (url, _):
        command = locust("--host", url, "--headless", "--users", "4", "--spawn-rate", "4", *_processes(2))
        command += ["--load", load, "--rate", "100", "--warm-up", "0.5"]
        command += ["--model", "x", "--payload", "payload.json", "--seconds", "2", "--check", "reference"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Counted for 2.0 s (ts-mps):" in done.stdout
    found = re.search(r"p50 (\d+\.\d)  p90 .*  p99 .*  p99.9 ", done.stdout)
    assert found and 20 <= float(found[1]) < 40
    assert re.search(r"\d+ answers compared with recorded ones", done.stdout)
    assert ("the planned instant" in done.stdout) is (load == "poisson")


#: A locustfile whose processes do not report between begin and end: what is in the table was handed in at the end.
_SELDOM = """
import sys
import locust.runners
sys.path.insert(0, {root!r})
locust.runners.WORKER_REPORT_INTERVAL = 3600
from ts_mps.bench.load.users import TorchServeUser
"""


@contextlib.contextmanager
def _plain_locust(folder: Path, url: str, processes: int, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Plain Locust with four connections, whose processes report seldom."""
    (folder / "payload").write_text("x")
    (folder / "locustfile.py").write_text(_SELDOM.format(root=str(ROOT)))
    command = [str(Path(sys.executable).parent / "locust"), "-f", "locustfile.py", "--host", url, "--headless"]
    command += ["--users", "4", "--spawn-rate", "4", "--model", "x", "--payload", "payload", "--warm-up", "0.5"]
    command += [*_processes(processes), *more]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": hear_signals}
    process = subprocess.Popen(command, cwd=folder, **piped)
    try:
        yield process
    finally:
        process.kill()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_locustfile_until_it_is_stopped(tmp_path: Path, environ: None, processes: int) -> None:
    with (
        load_server(Manners(delay=0.02)) as (url, _),
        _plain_locust(tmp_path, url, processes, "--run-time", "6s") as locust,
    ):
        said, complained = locust.communicate(timeout=60)
    counted = _COUNTED.search(said)
    assert counted and locust.returncode == 0, said + complained
    # Locust's own clock of --run-time is up to a second fast at its start.
    assert 1.5 <= float(counted[1]) <= 6 and 120 <= float(counted[2]) <= 200


@pytest.mark.parametrize(
    ("which", "signum"),
    [(slice(3), signal.SIGINT), (slice(1), signal.SIGTERM)],
    ids=["Ctrl-C", "the master is stopped"],
)
def test_the_locustfile_that_is_interrupted(
    tmp_path: Path, environ: None, which: slice, signum: signal.Signals
) -> None:
    with load_server(Manners(delay=0.02)) as (url, server), _plain_locust(tmp_path, url, 2) as locust:
        for process in _at_work(server)[which]:
            process.send_signal(signum)
        said, complained = locust.communicate(timeout=30)
    counted = _COUNTED.search(said)
    assert counted and locust.returncode == 0, complained
    # Two seconds from the first request on, less the warm-up.
    assert 1.3 <= float(counted[1]) <= 4 and 120 <= float(counted[2]) <= 200


def test_the_locustfile_that_is_stopped_after_one_of_its_processes_died(tmp_path: Path, environ: None) -> None:
    """Locust finds out only seconds later."""
    with load_server(Manners(delay=0.02)) as (url, server), _plain_locust(tmp_path, url, 2) as locust:
        master, _, died = _at_work(server)
        died.kill()
        master.terminate()
        said, complained = locust.communicate(timeout=30)
    assert not _COUNTED.search(said) and locust.returncode == 1
    assert "A process of the load generator has died or left." in complained


def test_the_locustfile_in_the_web_ui(tmp_path: Path, environ: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "payload").write_text("x")
    # A process that has stopped is unknown to Locust's master until it reports anew, which here takes longer.
    monkeypatch.setenv("LOCUST_WORKER_ADDITIONAL_WAIT_BEFORE_READY_AFTER_STOP", "2")
    web = free_port()
    page = f"http://127.0.0.1:{web}"
    with load_server(Manners(delay=0.02)) as (url, _):
        command = locust("--host", url, "--web-host", "127.0.0.1", "--web-port", str(web), *_processes(2))
        command += ["--model", "x", "--payload", "payload"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            for rate in (50, 100):  # started twice, the second time at another rate
                wish = {"user_count": 2, "spawn_rate": 2, "host": url, "load": "constant", "rate": rate, "warm_up": 0.5}
                _ready(page)
                assert requests.post(f"{page}/swarm", data=wish, timeout=5).json()["success"]
                time.sleep(4)
                assert requests.get(f"{page}/stats/requests", timeout=5).json()["total_rps"] > 20
                assert requests.post(f"{page}/stop", timeout=30).json()["success"]
            _ready(page)  # before it a process reads no messages, and would not hear of the end
        finally:
            process.send_signal(signal.SIGTERM)
            said, complained = process.communicate(timeout=20)
    rates = [float(one) for one in re.findall(r"  (\d+\.\d) requests/s answered", said)]
    assert rates == [pytest.approx(50, rel=0.2), pytest.approx(100, rel=0.2)], complained


def _ready(page: str) -> None:
    """Wait until both processes that make load have reported to Locust's master."""
    deadline = time.monotonic() + 20
    states: list[str] = []
    while states != ["ready", "ready"]:
        assert time.monotonic() < deadline, states
        time.sleep(0.1)
        with contextlib.suppress(requests.RequestException):
            states = [one["state"] for one in requests.get(f"{page}/stats/requests", timeout=5).json()["workers"]]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--model", "x"], "No payload is named."),
        (["--model", "x", "--payload", "missing.json"], "The payload missing.json cannot be read"),
        (["--payload", "payload"], "No model is named."),
        (["--workload", "nothing"], "There is no workload 'nothing'."),
        (["--workload", "text", "--payload", "payload"], "exclude each other"),
        (["--model", "x", "--payload", "payload", "--load", "poisson", "--rate", "-1"], "not a positive rate"),
    ],
)
def test_the_locustfile_refuses_with_a_sentence(tmp_path: Path, environ: None, arguments: list[str], why: str) -> None:
    (tmp_path / "payload").write_text("x")
    command = locust("--host", "http://127.0.0.1:1", "--headless", *arguments)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (1, 2) and why in done.stderr and "Traceback" not in done.stderr
