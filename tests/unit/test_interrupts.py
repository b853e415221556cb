"""Signals that are held back while something is cleaned up."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from ts_mps.profile.interrupts import uninterrupted


@pytest.fixture(autouse=True)
def other_thread():
    """A signal that the main thread blocked would arrive through this one."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


def test_an_interrupt_waits_for_the_end_of_the_block_whatever_threads_there_are():
    steps = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
            steps.append("cleaned up")
        steps.append("went on")
    assert steps == ["cleaned up"]


def test_handlers_are_as_before_and_each_signal_is_delivered_once():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: seen.append(signum))
    try:
        with uninterrupted(), uninterrupted():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)
            assert seen == []
        assert seen == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        assert seen == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_it_changes_nothing():
    handlers = []

    def work():
        with uninterrupted():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
