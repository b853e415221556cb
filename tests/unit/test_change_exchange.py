"""What verbs ask and the guardian answers, and that it makes one change at a time."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from watching import PLAN, instance, state

from ts_mps.cli.main import main
from ts_mps.errors import NotReadyError, NotRunningError, PlanError, TsMpsError
from ts_mps.files import read_json, try_lock
from ts_mps.guardian.change import changer as module
from ts_mps.guardian.change.changer import Changer
from ts_mps.guardian.change.exchange import Answer, Change, Exchange, waiting
from ts_mps.guardian.change.stage import Ended
from ts_mps.plan.model import Plan
from ts_mps.torchserve.client import ApiError


@pytest.fixture
def paths(short_dir):
    return instance(short_dir)


def test_a_request_is_taken_once_and_in_order(paths):
    first, second = Change("scale", "bert", 3), Change("reload", plan="/a/plan.json")
    Exchange.ask(paths, first)
    Exchange.ask(paths, second)
    assert [exchange.take() for exchange in waiting(paths)] == [first, second]
    assert waiting(paths) == ()


def test_what_is_no_request_is_none(paths):
    exchange = Exchange.ask(paths, Change("reload"))
    (paths.changes / f"{exchange.number}.json").write_text("{")
    assert exchange.take() is None and waiting(paths) == ()


def test_an_answer_is_read_back(paths):
    exchange = Exchange.ask(paths, Change("reload"))
    assert exchange.answered is None and not exchange.end_wished
    exchange.answer(Answer(said=("one", "two")))
    assert exchange.answered == Answer(said=("one", "two")) and not exchange.answered.over
    exchange.wish_end()
    assert exchange.end_wished
    exchange.clear()
    assert list(paths.changes.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [(PlanError("It does not fit.", "Nearest: 3."), PlanError), (ApiError("No answer."), NotReadyError)],
)
def test_an_error_is_the_verbs_as_it_was_the_guardians(error, kind):
    answer = Answer().failed("refused", error)
    with pytest.raises(kind, match=error.what) as raised:
        answer.raise_error()
    assert type(raised.value) is kind and raised.value.remedy == error.remedy


class Guardian:
    """A changer with a loop, whose changes wait until they may go on."""

    def __init__(self, paths, short_dir, monkeypatch) -> None:
        prepared = SimpleNamespace(paths=paths, plan=PLAN)
        self.go_on = threading.Event()
        self.events: list[str] = []
        self.plans: list[Plan] = []
        self.error: TsMpsError | None = None
        monkeypatch.setattr(module, "replace", lambda value, **more: _replaced(value, more))
        monkeypatch.setattr(Changer, "_carry_out", lambda changer, job, stage: self.work(stage))
        monkeypatch.setattr(module.Crew, "heed", lambda crew, attention: None)
        self.changer = Changer(
            prepared,
            state(short_dir),
            lambda event: self.events.append(event.kind),
            self.plans.append,
            lambda model: float("-inf"),
        )

    def work(self, stage) -> None:
        stage.say("begun")
        assert self.go_on.wait(10)
        stage.between()
        stage.adopt(replace(PLAN, slots=PLAN.slots[:1]))
        if self.error:
            raise self.error

    def turn(self, serving: bool = True) -> None:
        self.changer.turn(serving=serving)

    def until_over(self, exchange: Exchange) -> Answer:
        deadline = time.monotonic() + 10
        while self.changer.busy:
            assert time.monotonic() < deadline
            self.turn()
            time.sleep(0.01)
        return exchange.answered


def _replaced(value, more):
    return SimpleNamespace(**{**vars(value), **more}) if isinstance(value, SimpleNamespace) else replace(value, **more)


@pytest.fixture
def guardian(paths, short_dir, monkeypatch):
    return Guardian(paths, short_dir, monkeypatch)


def test_a_change_is_made_beside_the_loop_and_the_loop_takes_its_plan_over(paths, guardian):
    exchange = Exchange.ask(paths, Change("scale", "bert", 1))
    guardian.turn()
    assert guardian.changer.busy and guardian.changer.underway.text == "scaling model bert to 1 worker(s)"
    assert guardian.plans == []
    guardian.go_on.set()
    assert guardian.until_over(exchange) == Answer("done", ("begun",))
    assert [len(plan.slots) for plan in guardian.plans] == [1]
    assert len(read_json(paths.plan)["slots"]) == 1, "workers read it there"
    assert guardian.events == ["change-done"] and guardian.changer.underway.text == ""


def test_a_stop_while_the_plan_is_written_is_not_waited_past(paths, guardian, monkeypatch):
    stop = threading.Thread(target=guardian.changer.close, args=(5.0,))

    def write(path, value) -> None:
        stop.start()
        assert guardian.changer._closing.wait(5)
        time.sleep(0.1)

    exchange = Exchange.ask(paths, Change("reload"))
    guardian.turn()
    monkeypatch.setattr(module, "write_json", write)
    began = time.monotonic()
    guardian.go_on.set()
    guardian.changer._thread.join(10)
    assert not guardian.changer.busy and time.monotonic() - began < 3
    assert exchange.answered.state == "ended"


def test_whoever_did_not_go_was_not_asked_once_the_change_is_over(paths, guardian, monkeypatch):
    monkeypatch.setattr(module, "workers", lambda of: (SimpleNamespace(pid=7),))
    exchange = Exchange.ask(paths, Change("reload"))
    guardian.turn()
    guardian.changer._stage.asked.update({7: "rolled", 8: "rolled"})
    assert set(guardian.changer.underway.asked) == {7, 8}
    guardian.go_on.set()
    guardian.until_over(exchange)
    assert set(guardian.changer.underway.asked) == {8}, "the watch may not have seen it go"
    monkeypatch.setattr(module, "FORGET_SECONDS", 0.0)
    assert not guardian.changer.underway.asked, "the pid may be another's by now"


@pytest.mark.parametrize("closing", [False, True])
def test_a_change_that_outlives_its_instance_leaves_the_drain_alone(paths, guardian, monkeypatch, closing):
    heeded = []
    monkeypatch.setattr(module.Crew, "heed", lambda crew, attention: heeded.append(attention))
    exchange = Exchange.ask(paths, Change("reload"))
    guardian.turn()
    if closing:
        guardian.changer.close(0.0)
        assert guardian.changer.busy
    guardian.go_on.set()
    guardian.until_over(exchange)
    assert bool(heeded) == (not closing)


def test_a_second_one_is_refused_meanwhile(paths, guardian):
    first = Exchange.ask(paths, Change("reload"))
    guardian.turn()
    second = Exchange.ask(paths, Change("scale", "bert", 1))
    guardian.turn()
    assert second.answered.state == "refused" and second.answered.error == "A change is under way: reload."
    guardian.go_on.set()
    assert guardian.until_over(first).state == "done"


def test_nothing_is_begun_while_torchserve_is_started_again(paths, guardian):
    exchange = Exchange.ask(paths, Change("reload"))
    guardian.turn(serving=False)
    assert exchange.answered.state == "refused" and not guardian.changer.busy


def test_it_ends_between_two_workers_as_asked(paths, guardian):
    exchange = Exchange.ask(paths, Change("reload"))
    guardian.turn()
    exchange.wish_end()
    guardian.go_on.set()
    answer = guardian.until_over(exchange)
    assert answer.state == "ended" and guardian.plans == [] and guardian.events == ["change-ended"]


@pytest.mark.parametrize("how", ["the instance is stopped", "TorchServe dies"])
def test_it_ends_with_what_it_changes(paths, guardian, how):
    exchange = Exchange.ask(paths, Change("reload"))
    guardian.turn()
    if how == "TorchServe dies":
        guardian.turn(serving=False)
        guardian.go_on.set()
        deadline = time.monotonic() + 10
        while guardian.changer.busy and time.monotonic() < deadline:
            time.sleep(0.01)
    else:
        threading.Timer(0.1, guardian.go_on.set).start()
        guardian.changer.close(5.0)
    assert not guardian.changer.busy
    assert exchange.answered.state == "ended" and guardian.plans == []


def test_a_hang_up_reloads_once_what_is_under_way_is_done(paths, guardian):
    exchange = Exchange.ask(paths, Change("scale", "bert", 1))
    guardian.turn()
    guardian.changer.reload()
    guardian.turn()
    guardian.go_on.set()
    guardian.until_over(exchange)
    guardian.turn()
    guardian.until_over(exchange)
    guardian.turn()
    assert guardian.events == ["change-done", "change-done"] and not guardian.changer.busy


def test_a_failure_is_told(paths, guardian):
    guardian.error = Ended("So it ended.")
    guardian.go_on.set()
    exchange = Exchange.ask(paths, Change("reload"))
    guardian.turn()
    assert guardian.until_over(exchange).error == "So it ended."
    guardian.error = PlanError("It does not fit.")
    exchange = Exchange.ask(paths, Change("reload"))
    guardian.turn()
    answer = guardian.until_over(exchange)
    assert (answer.state, answer.kind) == ("failed", "PlanError")


@pytest.mark.parametrize("verb", [["scale", "bert", "2"], ["reload"], ["restart", "--rolling"], ["restart"]])
def test_without_a_guardian_nothing_can_be_changed(paths, short_dir, verb, capsys):
    arguments = [*verb, "--runtime-dir", str(short_dir)]
    assert main(arguments) == NotRunningError.exit_code, "it was never started"
    state(short_dir).save(paths)
    assert main(arguments) == NotRunningError.exit_code
    assert "guard" in capsys.readouterr().err


def test_a_verb_waits_for_the_answer_and_cleans_up(paths, short_dir, capsys):
    state(short_dir).save(paths)
    lock = try_lock(paths.guardian_lock)
    assert lock is not None

    def guard() -> None:
        while not waiting(paths):
            time.sleep(0.01)
        (exchange,) = waiting(paths)
        assert exchange.take() == Change("scale", "bert", 2)
        exchange.answer(Answer(said=("one more",)))
        time.sleep(0.3)
        exchange.answer(Answer("done", ("one more", "it is there")))

    thread = threading.Thread(target=guard, daemon=True)
    thread.start()
    assert main(["scale", "bert", "2", "--runtime-dir", str(short_dir)]) == 0
    thread.join(5)
    os.close(lock)
    said = capsys.readouterr()
    assert "scaling model bert to 2 worker(s) is done" in said.out
    assert said.err.count("one more") == 1 and "it is there" in said.err
    assert list(paths.changes.iterdir()) == []
