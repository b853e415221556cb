"""Waking up at an instant to within some microseconds, inside gevent.

gevent's loop waits in whole milliseconds (libev hands epoll_wait(2) its timeout rounded up), which would make every
request of an open loop up to 1 ms late. A timerfd(2) is a file descriptor that the same loop is woken by on time.
"""

from __future__ import annotations

import ctypes
import os
import time

import gevent
import gevent.socket

#: Seconds; what is due sooner is due now, as setting a timer takes longer.
_NOW = 20e-6
_NANO = 1_000_000_000
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME


class _Itimerspec(ctypes.Structure):
    _fields_ = [  # as ctypes wants it
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    ]


class Alarm:
    """One timer on time.monotonic()'s clock, for one greenlet.

    Raises:
        OSError: The kernel gives no timer.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def wait(self, instant: float) -> None:
        """Let others run until this instant of time.monotonic(), and at least once."""
        if instant - time.monotonic() <= _NOW:
            gevent.sleep(0)
            return
        seconds, nanoseconds = divmod(round(instant * _NANO), _NANO)
        when = _Itimerspec(0, 0, seconds, nanoseconds)
        if self._libc.timerfd_settime(self._timer, _ABSOLUTE, ctypes.byref(when), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        gevent.socket.wait_read(self._timer)
        # It has gone off; setting it anew disarms it, so its count needs no reading.

    def close(self) -> None:
        """Give the timer back."""
        os.close(self._timer)
