"""TorchServe's door seen and shut from outside, on a real process, and the steps of a drain around it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest
from support import eventually
from watching import instance, state

from ts_mps.activity import Activity
from ts_mps.guardian import drain as module
from ts_mps.guardian.drain import drain
from ts_mps.torchserve import door

#: Takes connections and says back what it reads, when it is told to on its standard input.
SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
sys.stdin.readline()
connection.sendall(connection.recv(100))
sys.stdin.readline()
"""


@pytest.fixture
def server():
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.port = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()


def test_a_shut_door_refuses_newcomers_and_leaves_those_inside_alone(server):
    with socket.create_connection(("127.0.0.1", server.port)) as inside:
        assert eventually(lambda: door.connected(server.pid, server.port) == 1)
        assert not door.under_way(server.pid, server.port)
        assert door.shut(server.pid, server.port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
        inside.sendall(b"still here")
        assert door.under_way(server.pid, server.port), "it has not been read"
        print(file=server.stdin, flush=True)
        assert inside.recv(100) == b"still here"
        assert eventually(lambda: not door.under_way(server.pid, server.port))
    assert not door.shut(server.pid, server.port), "there is no door any more"


def test_nothing_is_seen_of_a_process_that_is_gone():
    assert not door.shut(2**22 + 1, 80) and door.connected(2**22 + 1, 80) == 0


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    """An instance with one worker's page, whose TorchServe is this process and has nothing in its queues."""
    paths = instance(tmp_path)
    monkeypatch.setattr(module, "queued", lambda api: 0)
    monkeypatch.setattr(module, "_shut", lambda state: steps.append("shut") or True)
    monkeypatch.setattr(module, "_refuse", lambda paths, state, traffic: steps.append("refuse"))
    steps: list[str] = []
    return paths, state(tmp_path), steps


def test_where_nothing_comes_it_is_short_and_the_door_is_shut_all_the_same(quiet):
    paths, of, steps = quiet
    began = time.monotonic()
    drain(paths, of, 30.0, lambda text: None, lambda: False)
    assert steps == ["shut", "refuse"] and time.monotonic() - began < 2


@pytest.mark.parametrize("shut", [True, False])
def test_it_says_so_where_the_door_cannot_be_shut(quiet, monkeypatch, shut):
    paths, of, _ = quiet
    monkeypatch.setattr(module, "_shut", lambda state: shut)
    told: list[str] = []
    drain(paths, of, 30.0, told.append, lambda: False)
    assert any("cannot be shut" in text for text in told) is not shut


def test_no_time_is_no_drain(quiet):
    paths, of, steps = quiet
    drain(paths, of, 0.0, pytest.fail, lambda: False)
    assert steps == []


def test_it_serves_on_for_half_of_its_time_while_requests_come(quiet, monkeypatch):
    paths, of, steps = quiet
    taken = iter(range(10_000))
    monkeypatch.setattr(module, "batches_taken", lambda paths: next(taken))
    began = time.monotonic()
    drain(paths, of, 3.0, lambda text: None, lambda: False)
    assert steps == ["shut", "refuse"] and 1.5 <= time.monotonic() - began < 3


def test_a_second_signal_hurries_it(quiet, monkeypatch):
    paths, of, steps = quiet
    monkeypatch.setattr(module, "busy", lambda paths: ("somebody",))
    hurried = iter([False, False, True, False, False])
    began = time.monotonic()
    drain(paths, of, 30.0, lambda text: None, lambda: next(hurried))
    assert steps == [] and time.monotonic() - began < 2, "it is asked for once, and stands"


def test_traffic_is_seen_by_its_batches(tmp_path):
    paths = instance(tmp_path)
    page = Activity.create(paths.slots / "000.activity")
    before = module.batches_taken(paths)
    page.begin()
    page.end()
    assert module.batches_taken(paths) == before + 1


def test_answers_that_no_client_has_taken_yet_are_waited_for(tmp_path):
    """A large answer lies in the socket's buffer while its client is slow; TorchServe resets it when it ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            served, _ = listener.accept()
            served.setblocking(False)
            served.send(bytes(2**22))
            assert door.under_way(os.getpid(), port)
            client.settimeout(1)
            while eventually(lambda: door.under_way(os.getpid(), port), 0.0):
                client.recv(2**20)
            served.close()


def test_the_queues_are_asked_once_where_nothing_comes(quiet, monkeypatch):
    """On a GPU every question makes TorchServe start one nvidia-smi for each worker."""
    paths, of, _ = quiet
    asked: list[float] = []
    monkeypatch.setattr(module, "queued", lambda api: asked.append(time.monotonic()) or 0)
    monkeypatch.setattr(module, "_unanswered", lambda state: False)
    monkeypatch.setattr(module.door, "connected", lambda pid, port: 0)
    drain(paths, of, 30.0, lambda text: None, lambda: False)
    assert len(asked) == 2, "once before the door is shut, and once after it"


def test_a_request_in_a_queue_is_waited_for_though_no_worker_is_at_work(quiet, monkeypatch):
    paths, of, steps = quiet
    waiting = iter([3, 1, 0, 0, 0])
    monkeypatch.setattr(module, "queued", lambda api: next(waiting))
    monkeypatch.setattr(module, "_unanswered", lambda state: False)
    monkeypatch.setattr(module.door, "connected", lambda pid, port: 0)
    drain(paths, of, 30.0, lambda text: None, lambda: False)
    assert next(waiting) == 0 and next(waiting, None) is None, "asked twice in vain, and once before and after the door"
    assert steps == ["shut", "refuse"]
