"""The search for the largest rate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from benching import histogram, result, run
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.bench.rates import Outcome, outcome, search

HELD, BROKEN, BEHIND, FAILED = Outcome.HELD, Outcome.BROKEN, Outcome.BEHIND, Outcome.FAILED


def tried(tries: Callable[[float], Outcome], ceiling: float, steps: int) -> list[tuple[float, Outcome]]:
    """Every rate with its outcome, in their order."""
    going, found = search(ceiling, steps), list[tuple[float, Outcome]]()
    rate = next(going)
    while True:
        found.append((rate, tries(rate)))
        try:
            rate = going.send(found[-1][1])
        except StopIteration:
            return found


def bounds(found: list[tuple[float, Outcome]], ceiling: float) -> tuple[float, float]:
    """The largest rate that held, and the smallest that was not one."""
    return (
        max((rate for rate, seen in found if seen is HELD), default=0.0),
        min((rate for rate, seen in found if seen in (BROKEN, BEHIND)), default=ceiling),
    )


@given(st.floats(10, 1e5), st.floats(0, 1.2), st.integers(1, 10))
def test_the_truth_lies_between_what_held_and_what_broke(ceiling, part, steps):
    truth = ceiling * part
    found = tried(lambda rate: HELD if rate <= truth else BROKEN, ceiling, steps)
    low, high = bounds(found, ceiling)
    assert low <= truth or low == 0
    assert high > truth or high == ceiling
    assert len(found) == steps and all(0 < rate < ceiling for rate, _ in found)
    assert high - low == pytest.approx(ceiling / 2**steps, abs=0.002)


@given(st.floats(0.05, 1.2), st.floats(0.05, 1.2), st.integers(5, 10))
def test_where_the_generator_falls_behind_lower_rates_are_tried(truth, able, steps):
    """The server bears ``truth`` of the ceiling and the generator makes ``able`` of it."""

    def tries(rate: float) -> Outcome:
        if rate > 1000 * able:
            return BEHIND
        return HELD if rate <= 1000 * truth else BROKEN

    low, high = bounds(tried(tries, 1000.0, steps), 1000.0)
    assert low <= min(truth, able) * 1000 <= high or high == 1000.0
    assert high - low == pytest.approx(1000 / 2**steps, abs=0.002)


def test_a_rate_of_which_nothing_is_known_is_tried_again():
    outcomes = iter((FAILED, HELD, BROKEN))
    assert [rate for rate, _ in tried(lambda rate: next(outcomes), 80.0, 3)] == [40.0, 40.0, 60.0]


def test_a_rate_holds_if_enough_of_what_was_sent_came_in_time():
    latencies = histogram([10.0] * 989 + [90.0] * 11)
    measured = result(throughput=100, kind="poisson", rate=100, sent=1000, answered=1000, histogram=latencies)
    assert outcome(run("a", measured=measured), 100.0) is HELD
    assert outcome(run("a", measured=measured), 50.0) is BROKEN, "1.1 % came later"


@pytest.mark.parametrize(("behind_ms", "seen"), [(0.5, BROKEN), (3.0, BEHIND)])
def test_what_the_generator_was_late_is_not_held_against_the_server(behind_ms, seen):
    latencies = histogram([10.0] * 950 + [52.0] * 50)
    measured = result(100, kind="poisson", rate=100, sent=1000, answered=1000, histogram=latencies, behind_ms=behind_ms)
    assert outcome(run("a", measured=measured), 50.0) is seen


def test_what_failed_is_late_for_ever():
    measured = result(kind="poisson", rate=100, sent=1000, answered=980, histogram=histogram([10.0] * 980))
    assert outcome(run("a", measured=measured), 50.0) is BROKEN
    nothing = result(kind="poisson", rate=100, sent=1000, answered=0, histogram=histogram([]))
    assert outcome(run("a", measured=nothing, failure="None of 1000 was answered."), 50.0) is BROKEN


def test_a_run_that_does_not_count_says_nothing_of_its_rate():
    fine = result(kind="poisson", rate=100, sent=1000, answered=1000, histogram=histogram([10.0] * 1000))
    assert outcome(run("a", measured=fine), 50.0) is HELD
    assert outcome(run("a", measured=fine, failure="A worker died."), 50.0) is FAILED
    assert outcome(run("a", failure="It never got ready."), 50.0) is FAILED
    void = result(kind="poisson", rate=100, void="It fell behind.", histogram=histogram([10.0] * 1000))
    assert outcome(run("a", measured=void), 50.0) is BEHIND
