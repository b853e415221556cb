"""TorchServe's worker threads: how many to ask for where some of them gave up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.torchserve.threads import START_SECONDS, Thread, quiet_seconds, to_ask_for, working


def threads(pattern: str) -> tuple[Thread, ...]:
    """One for each letter: "w" works, "g" gave up."""
    return tuple(Thread(100 + place, letter == "w", letter == "g") for place, letter in enumerate(pattern))


def modelchanged(before: tuple[Thread, ...], workers: int) -> tuple[Thread, ...]:
    """What ``WorkLoadManager.modelChanged`` makes of min_worker = max_worker = ``workers``."""
    if workers == 0:
        return ()
    return before[:workers] + threads("w" * (workers - len(before)))


@pytest.mark.parametrize(
    ("pattern", "count", "asked"),
    [
        ("www", 2, 2),
        ("www", 4, 4),
        ("gww", 1, 2),  # 1 would leave none
        ("gww", 3, 4),
        ("wgw", 1, 1),
        ("wwg", 2, 2),
        ("gg", 1, 3),
        ("gww", 0, 0),
        ("", 2, 2),
    ],
)
def test_to_ask_for(pattern, count, asked):
    assert to_ask_for(threads(pattern), count) == asked


@given(st.text("wg", max_size=8), st.integers(0, 8))
def test_as_many_work_as_were_wanted_and_none_more_than_needed_ends(pattern, count):
    before = threads(pattern)
    after = modelchanged(before, to_ask_for(before, count))
    assert working(after) == count
    if count >= working(before):
        assert [thread for thread in before if not thread.gave_up and thread not in after] == []


@pytest.mark.parametrize(("retry", "longest"), [(1, 1), (5, 3), (300, 144), (3600, 1597), (10**6, 1597)])
def test_the_longest_pause_within_the_time_for_retries(retry, longest):
    assert quiet_seconds(retry) == longest + START_SECONDS
