"""Leaving after the device is lost: once the answers are sent, and not before."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import time

import pytest

from ts_mps.batching import device


def run(program: str) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    return done, time.monotonic() - began


def test_the_answer_is_sent_and_nothing_is_done_after_it() -> None:
    done, _ = run(
        """
        import socket, sys
        from ts_mps.batching import device
        device._ANSWERING_S = 60
        ours, theirs = socket.socketpair()
        device.leave_after_answering()
        ours.send(b"other calls do not end it")
        print("before", flush=True)
        ours.sendall(b"answer")
        print("after", flush=True)
        """
    )
    assert (done.returncode, done.stdout) == (device.EXIT_DEVICE_LOST, "before\n")


def test_the_peer_gets_the_whole_answer() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import socket, sys\nfrom ts_mps.batching import device\n"
                "s = socket.socket(fileno=int(sys.argv[1]))\ndevice.leave_after_answering()\n"
                "s.sendall(b'x' * 1_000_000)\n",
                str(theirs.fileno()),
            ],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        ours.settimeout(30)
        got = 0
        while part := ours.recv(65536):
            got += len(part)
        assert (child.wait(30), got) == (device.EXIT_DEVICE_LOST, 1_000_000)


def test_it_leaves_even_if_no_answer_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(device, "_ANSWERING_S", 0.01)
    try:
        device.leave_after_answering(left.append).join(5)
    finally:
        sys.setprofile(None)
    assert left == [device.EXIT_DEVICE_LOST]
