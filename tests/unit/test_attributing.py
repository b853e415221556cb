"""Requests given to the faults that they belong to, however late their failure is known."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import attributing
import pytest
from loading import Answer


@pytest.fixture
def clock(monkeypatch):
    """The time at which a fault is over."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(attributing, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_a_request_belongs_to_the_first_fault_that_was_over_after_it_was_sent(clock):
    answers: list[Answer] = []
    requests = attributing.Requests({"m": SimpleNamespace(answers=answers)})
    # The first fault lasts from 1 to 5.
    answers += [Answer(0.0, 0.1, 200, b""), Answer(0.9, 1.1, 503, b"struck"), Answer(4.0, 4.1, 200, b"")]
    answers += [Answer(5.5, 5.6, 200, b"after it")]
    clock.seconds = 5.0
    first = requests.over()
    requests.count(1.0)
    assert first == ({"m": Counter({503: 1})}, Counter(m=3)) and requests.unexplained == []
    # The second from 8 to 9, while one that the first had dropped gives up.
    answers += [Answer(5.7, 5.8, 500, b"between"), Answer(7.9, 8.1, 0, b""), Answer(2.0, 8.5, 0, b"dropped")]
    clock.seconds = 9.0
    second = requests.over()
    requests.count(8.0)
    assert first == ({"m": Counter({503: 1, 0: 1})}, Counter(m=4))
    assert second == ({"m": Counter({0: 1})}, Counter(m=3))
    # Of the rest one was dropped by the second.
    answers += [Answer(9.5, 9.6, 500, b"after all"), Answer(8.5, 38.0, 0, b"dropped")]
    requests.end()
    assert second == ({"m": Counter({0: 2})}, Counter(m=4))
    assert requests.unexplained == [
        "1 without a fault: m 500 b'between'",
        "1 without a fault: m 500 b'after all'",
    ]
