"""sd_notify over a real datagram socket."""

from __future__ import annotations

import os
import socket
import time
from types import SimpleNamespace

import pytest
from watching import state

from ts_mps.guardian.loop import Guardian
from ts_mps.guardian.notify import Notifier
from ts_mps.guardian.takedown import CLOSING_SECONDS, longest


@pytest.fixture(params=["path", "abstract"])
def manager(request, short_dir):
    """The service manager's end, and what it puts into NOTIFY_SOCKET."""
    name = str(short_dir / "notify") if request.param == "path" else f"@ts-mps-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0"))
        receiver.settimeout(5)
        yield receiver, name


def received(receiver):
    messages = []
    receiver.setblocking(False)
    try:
        while True:
            messages.append(receiver.recv(4096).decode())
    except BlockingIOError:
        return messages


def test_states_as_systemd_reads_them(manager):
    receiver, name = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": name})
    notifier.status("2 of 4\nworkers ready")
    notifier.extend(1.5)
    notifier.ready()
    notifier.alive()
    notifier.stopping()
    expected = ["STATUS=2 of 4 workers ready", "EXTEND_TIMEOUT_USEC=1500000", "READY=1", "STOPPING=1"]
    assert received(receiver) == expected, "without WATCHDOG_USEC nobody waits for a sign of life"


def test_a_status_is_sent_when_it_is_another_one(manager):
    receiver, name = manager
    notifier = Notifier(name)
    for text in ("serving", "serving", "recovering", "serving"):
        notifier.status(text)
    assert received(receiver) == ["STATUS=serving", "STATUS=recovering", "STATUS=serving"]


def test_a_stop_tells_how_long_it_may_take_before_it_waits_for_anything(manager, short_dir):
    receiver, name = manager
    prepared = SimpleNamespace(environ={"NOTIFY_SOCKET": name}, taken_over=state(short_dir))
    Guardian(prepared, print, print)._stopping(drain=300.0)  # type: ignore[arg-type]
    stopping, extended, _ = received(receiver)
    assert stopping == "STOPPING=1"
    assert int(extended.removeprefix("EXTEND_TIMEOUT_USEC=")) / 1e6 == longest(300.0) > 300 + CLOSING_SECONDS


def test_signs_of_life_come_twice_as_often_as_waited_for(manager):
    receiver, name = manager
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier.from_environment(environ)
    deadline = time.monotonic() + 0.55
    while time.monotonic() < deadline:
        notifier.alive()
        time.sleep(0.005)
    messages = received(receiver)
    assert set(messages) == {"WATCHDOG=1"} and 4 <= len(messages) <= 6


@pytest.mark.parametrize("environ", [{"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}, {}])
def test_a_watchdog_that_is_not_for_us(manager, environ):
    receiver, name = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": name, **environ})
    notifier.alive()
    assert received(receiver) == []


@pytest.mark.parametrize("name", ["", "/nowhere/notify", "@nobody-listens-here"])
def test_nobody_listens(name):
    Notifier(name, 1.0).ready()
    Notifier(name, 1.0).alive()


def test_a_manager_that_does_not_read_holds_nobody_up(manager):
    receiver, name = manager
    notifier = Notifier(name)
    began = time.monotonic()
    for _ in range(2000):
        notifier.ready()
    assert time.monotonic() - began < 5
    assert received(receiver)
