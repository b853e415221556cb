"""A worker that listens to its guardian, at the end of a real socket and a real page."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from ts_mps.activity import Activity, Attention
from ts_mps.torchserve import listening
from ts_mps.torchserve.listening import REFUSAL, can_listen, listen
from ts_mps.torchserve.word import GIVEN_BACK, Word, word_in

SECRET = 2**63 + 5


def batch_of(word: Word | None = None, **headers: str) -> list[dict[str, object]]:
    """A batch as TorchServe's worker reads it from its connection."""
    said = {**(word.header() if word else {}), **headers}
    named = [{"name": bytearray(k.encode()), "value": bytearray(v.encode())} for k, v in said.items()]
    return [{"requestId": bytearray(b"id-1"), "headers": named, "parameters": []}]


@pytest.fixture
def worker(tmp_path):
    """A service that listens, its page, and TorchServe's end of the connection."""
    ours, theirs = socket.socketpair()
    path = tmp_path / "000.activity"
    activity = Activity.create(path)
    service = SimpleNamespace(predict=lambda batch: b"served", cl_socket=ours)
    here = SimpleNamespace(path=path, frontend=theirs, guarded=True)
    listen(service, activity, lambda: here.guarded)
    here.predict = service.predict
    yield here
    ours.close()
    theirs.close()


@pytest.fixture(autouse=True)
def no_alarm():
    yield
    signal.alarm(0)


def word(do: str, *, pids: tuple[int, ...] = (os.getpid(),), until: float = 60.0, secret: int = SECRET) -> Word:
    return Word(do, pids, time.monotonic() + until, secret)


def ask(worker, attention: Attention = Attention.LISTEN) -> None:
    Activity.ask(worker.path, attention, SECRET)


def status(answer: bytes) -> int:
    return int.from_bytes(answer[:4], "big")


def test_a_word_is_read_back():
    said = word("leave", pids=(3, 4))
    assert word_in(batch_of(said, describe="True")) == said
    assert word_in(batch_of()) is None
    assert word_in([*batch_of(said), *batch_of(said)]) is None, "TorchServe hands a description out alone"
    assert word_in(batch_of(**{"ts-mps-word": '{"do": "leave"}'})) is None


def test_nothing_is_heard_without_attention(worker):
    assert worker.predict(batch_of(word("leave"))) == b"served"


def test_other_batches_are_served(worker):
    ask(worker)
    assert worker.predict(batch_of()) == b"served"
    assert worker.predict([*batch_of(), *batch_of()]) == b"served"


def test_it_leaves_as_a_worker_does_whose_frontend_is_gone(worker):
    ask(worker)
    with pytest.raises(SystemExit) as left:
        worker.predict(batch_of(word("leave")))
    assert left.value.code == 0
    assert 0 < signal.alarm(0) <= listening.LEAVING_SECONDS, "a clean-up that hangs is cut short"


@pytest.mark.parametrize("other", [{"pids": (1,)}, {"until": -1.0}], ids=["somebody else", "too late"])
def test_a_word_that_is_not_for_it_is_given_back(worker, other):
    ask(worker)
    for do in ("leave", "park"):
        assert status(worker.predict(batch_of(word(do, **other)))) == GIVEN_BACK
    assert not Activity.is_parked(worker.path)


def test_a_client_that_does_not_know_the_secret_is_served(worker):
    ask(worker)
    assert worker.predict(batch_of(word("leave", secret=SECRET + 1))) == b"served"


def test_what_comes_too_late_is_refused_in_words_and_words_are_heard(worker):
    ask(worker, Attention.REFUSE)
    answer = worker.predict([*batch_of(), *batch_of()])
    assert status(answer) == 503 and REFUSAL.encode() in answer
    assert status(worker.predict(batch_of(word("pass", pids=())))) == GIVEN_BACK


def test_nothing_is_refused_for_a_guardian_that_died_in_the_middle_of_a_stop(worker):
    ask(worker, Attention.REFUSE)
    worker.guarded = False
    assert worker.predict(batch_of()) == b"served"


class Parked(threading.Thread):
    """A batch with the word that parks the worker, in a thread."""

    def __init__(self, worker, **more: float) -> None:
        super().__init__()
        self._worker = worker
        self._batch = batch_of(word("park", **more))
        self.answer: bytes | None = None
        self.left = False

    def run(self) -> None:
        try:
            self.answer = self._worker.predict(self._batch)
        except SystemExit:
            self.left = True

    def __enter__(self) -> Parked:
        self.start()
        deadline = time.monotonic() + 5
        while not Activity.is_parked(self._worker.path):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.join(5)
        assert not self.is_alive()


@pytest.fixture
def leaving(monkeypatch):
    """Signals are a matter of the main thread, in which a worker serves."""

    def leave() -> None:
        raise SystemExit(0)

    monkeypatch.setattr(listening, "_leave", leave)


def test_parked_it_waits_for_its_end(worker, leaving):
    ask(worker)
    with Parked(worker) as parked:
        assert Activity.batch(worker.path) is None, "it is inside no batch"
        time.sleep(0.3)
        assert parked.is_alive()
        worker.frontend.close()
    assert parked.left


def test_parked_it_serves_on_when_time_is_up(worker, leaving):
    ask(worker)
    with Parked(worker, until=0.5) as parked:
        pass
    assert status(parked.answer) == GIVEN_BACK and not Activity.is_parked(worker.path)


def test_parked_it_serves_on_when_its_guardian_thinks_better_of_it(worker, leaving):
    ask(worker)
    with Parked(worker) as parked:
        ask(worker, Attention.NONE)
    assert status(parked.answer) == GIVEN_BACK and not Activity.is_parked(worker.path)


def test_parked_it_serves_on_when_its_guardian_dies(worker, leaving):
    ask(worker)
    with Parked(worker) as parked:
        worker.guarded = False
    assert status(parked.answer) == GIVEN_BACK and not Activity.is_parked(worker.path)


@pytest.mark.parametrize("kind", ["continuousBatching", "sequenceBatching", "asyncCommunication"])
def test_models_whose_workers_hold_more_than_one_batch_do_not_listen(kind):
    assert not can_listen({kind: True})
    assert can_listen({kind: False})


def test_models_without_a_configuration_listen():
    assert can_listen(None) and can_listen({})


def test_a_guardian_that_asks_before_the_page_is_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        Activity.ask(tmp_path / "none", Attention.LISTEN)
    assert not Activity.is_parked(tmp_path / "none") and Activity.taken(tmp_path / "none") == 0
