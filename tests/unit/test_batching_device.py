"""Leaving after the device is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from ts_mps.batching import device


def test_the_process_ends_without_cleaning_up() -> None:
    program = """
        import atexit, sys
        from ts_mps.batching import device
        atexit.register(print, "cleaned up")
        device.leave()
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (device.EXIT_DEVICE_LOST, "")


def test_it_leaves_by_itself_if_no_batch_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(device, "_LINGERING_S", 0.01)
    monkeypatch.setattr(device, "leave", lambda: left.append(os.getpid()))
    device.leave_after_answering().join(5)
    assert left == [os.getpid()]
