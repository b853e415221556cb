"""One run: what counts, what does not, and that nothing of it is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import pytest
from benching import arm, result

from ts_mps.bench.proof import Witness
from ts_mps.bench.records import Arm, Load, LoadResult, Run
from ts_mps.bench.runner import Runner
from ts_mps.bench.schedule import Turn
from ts_mps.bench.site import LeftRunning, ServerError, Site
from ts_mps.errors import PreflightError, TsMpsError

ON = arm(2, mps=True)
GOOD = Witness((11, 12), frozenset({11, 12}))
LOAD = Load("closed", 8, 0.0, 0.2, 0.0, 1)


class Fake:
    """A server that plays what it is told, and notes what is done with it."""

    def __init__(
        self, *seen: Witness | Exception, start: Exception | None = None, end: Exception | None = None
    ) -> None:
        self.seen, self.fails, self.stays = list(seen), start, end
        self.done: list[str] = []

    def start(self) -> None:
        self.done.append("start")
        if self.fails:
            raise self.fails

    def url(self) -> str:
        return "http://127.0.0.1:1"

    def frontend(self) -> tuple[int, ...]:
        return ()

    def witness(self) -> Witness:
        self.done.append("witness")
        now = self.seen.pop(0)
        if isinstance(now, Exception):
            raise now
        return now

    def logs(self) -> str:
        return "the last lines"

    def end(self) -> None:
        self.done.append("end")
        if self.stays:
            raise self.stays


class Sending:
    """The load of a run, and the times at which its processes are there."""

    def __init__(self, server: Fake, answer: LoadResult | BaseException | None = None) -> None:
        self.server, self.answer = server, answer

    @contextmanager
    def __call__(self, arm: Arm, load: Load) -> Iterator[Callable[[str], LoadResult]]:
        def send(url: str) -> LoadResult:
            self.server.done.append("load")
            began = time.time()
            time.sleep(load.seconds)
            if isinstance(self.answer, BaseException):
                raise self.answer
            return replace(self.answer or result(), load=load, began=began)

        self.server.done.append("stand by")
        try:
            yield send
        finally:
            self.server.done.append("gone")


def made(server: Fake, one: Arm = ON, answer: LoadResult | BaseException | None = None) -> Run:
    site = Site("m", __file__, None, (0, 1, 2), {})  # type: ignore[arg-type]
    return Runner(site, Sending(server, answer), lambda site, arm: server).run(Turn(3, 1, one.name), one, LOAD)


def test_a_good_run_is_proven_before_and_after():
    server = Fake(GOOD, GOOD)
    run = made(server)
    # The generator gets ready while the server does, and is gone before the server ends.
    assert server.done == ["stand by", "start", "witness", "load", "witness", "gone", "end"]
    assert run.counts and (run.block, run.position, run.arm) == (3, 1, ON.name)
    assert (run.clients, run.server_limit, run.failure, run.details) == (2, 3, "", "")


@pytest.mark.parametrize(
    ("one", "seen", "sentence"),
    [
        (ON, (Witness((11, 12), frozenset({11})),), "Before the load 1 of 2 workers were MPS clients"),
        (ON, (GOOD, Witness((11, 12), frozenset({11}))), "After the load 1 of 2 workers were MPS clients"),
        (ON, (GOOD, Witness((11, 13), frozenset({11, 13}))), "The workers 12 died during the load"),
        (ON, (GOOD, ServerError("TorchServe is gone.")), "did not answer any more: TorchServe is gone."),
        (arm(2), (GOOD,), "Before the load 2 of 2 workers were MPS clients, and none may be"),
    ],
)
def test_without_proof_it_is_void_and_ended_all_the_same(one, seen, sentence):
    server = Fake(*seen)
    run = made(server, one)
    assert not run.counts and sentence in run.failure and run.details == "the last lines"
    assert server.done[-2:] == ["gone", "end"]
    assert ("load" in server.done) == (len(seen) == 2), "what is void before the load gets none"


def test_what_the_generator_saw_of_a_dying_server_is_kept():
    run = made(Fake(GOOD, ServerError("TorchServe is gone.")))
    assert not run.counts and run.result is not None


@pytest.mark.parametrize("error", [ServerError("A port is taken.", "Free it.", "a traceback"), OSError(28, "full")])
def test_a_server_that_does_not_start_is_a_failed_run(error):
    server = Fake(start=error)
    run = made(server)
    assert not run.counts and run.result is None and str(error) in run.failure
    assert "the last lines" in run.details
    assert server.done == ["stand by", "start", "gone", "end"]


def test_a_server_that_cannot_even_be_prepared_is_a_failed_run():
    def refuse(site: Site, arm: Arm) -> Fake:
        raise OSError(28, "No space left on device")

    site = Site("m", __file__, None, (0,), {})  # type: ignore[arg-type]
    run = Runner(site, Sending(Fake()), refuse).run(Turn(0, 0, ON.name), ON, LOAD)
    assert "No space left on device" in run.failure


def test_a_generator_that_dies_is_a_failed_run():
    server = Fake(GOOD)
    run = made(server, answer=TsMpsError("Locust died.", details="its log"))
    assert "Locust died." in run.failure and "its log" in run.details and server.done[-2:] == ["gone", "end"]


def test_a_generator_that_cannot_be_started_is_a_failed_run():
    def missing(arm: Arm, load: Load) -> AbstractContextManager[Callable[[str], LoadResult]]:
        raise PreflightError("Locust is not installed.")

    server = Fake()
    site = Site("m", __file__, None, (0,), {})  # type: ignore[arg-type]
    run = Runner(site, missing, lambda site, arm: server).run(Turn(0, 0, ON.name), ON, LOAD)
    assert "Locust is not installed." in run.failure and server.done == ["end"]


def test_a_load_that_nobody_answered_does_not_count():
    nothing = replace(result(), sent=5, answered=0, first_errors={"503": "no worker"})
    run = made(Fake(GOOD, GOOD), answer=nothing)
    assert not run.counts and "None of 5 requests" in run.failure and "503: no worker" in run.failure


def test_an_interrupt_ends_the_server_and_makes_no_run():
    server = Fake(GOOD)
    with pytest.raises(KeyboardInterrupt):
        made(server, answer=KeyboardInterrupt())
    assert server.done[-1] == "end"


def test_a_server_that_stays_ends_the_study():
    """Whatever were measured beside it would be wrong."""
    with pytest.raises(LeftRunning):
        made(Fake(GOOD, GOOD, end=LeftRunning("It did not end.")))
