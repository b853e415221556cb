"""The search for the largest rate."""

from __future__ import annotations

import pytest
from benching import histogram, result, run
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.bench.rates import Outcome, largest_rate, outcome

HELD, BROKEN, BEHIND, FAILED = Outcome.HELD, Outcome.BROKEN, Outcome.BEHIND, Outcome.FAILED


@given(st.floats(10, 1e5), st.floats(0, 1.2), st.integers(1, 10))
def test_the_truth_lies_between_what_held_and_what_broke(ceiling, part, steps):
    truth, tried = ceiling * part, []

    def tries(rate: float) -> Outcome:
        tried.append(rate)
        return HELD if rate <= truth else BROKEN

    found = largest_rate(tries, ceiling, steps)
    assert found.rate <= truth or found.rate == 0
    assert found.broken is None or found.broken > truth
    assert len(tried) == steps and all(0 < rate < ceiling for rate in tried) and found.behind is None
    high = ceiling if found.broken is None else found.broken
    assert high - found.rate == pytest.approx(ceiling / 2**steps, abs=0.002)


@given(st.floats(0.05, 1.2), st.floats(0.05, 1.2), st.integers(5, 10))
def test_a_generator_that_falls_behind_is_no_rate_that_did_not_hold(truth, able, steps):
    """The server bears ``truth`` of the ceiling and the generator makes ``able`` of it."""

    def tries(rate: float) -> Outcome:
        if rate > 1000 * able:
            return BEHIND
        return HELD if rate <= 1000 * truth else BROKEN

    found = largest_rate(tries, 1000.0, steps)
    assert found.broken is None or found.broken > 1000 * truth
    bound = min(truth, able, 1.0) * 1000
    assert found.rate <= bound and bound - found.rate <= 1000 / 2**steps + 0.002
    if truth > able:
        assert found.broken is None, "no rate that was made did not hold"
    assert found.behind is None or (
        found.behind > 1000 * able and (found.broken is None or found.behind < found.broken)
    )


def test_a_rate_of_which_nothing_is_known_is_tried_again():
    tried: list[float] = []
    outcomes = iter((FAILED, HELD, BROKEN))

    def tries(rate: float) -> Outcome:
        tried.append(rate)
        return next(outcomes)

    found = largest_rate(tries, 80.0, 3)
    assert tried == [40.0, 40.0, 60.0]
    assert (found.rate, found.broken, found.behind) == (40.0, 60.0, None)


def test_a_rate_holds_if_enough_of_what_was_sent_came_in_time():
    latencies = histogram([10.0] * 989 + [90.0] * 11)
    measured = result(throughput=100, kind="poisson", rate=100, sent=1000, answered=1000, histogram=latencies)
    assert outcome(run("a", measured=measured), 100.0) is HELD
    assert outcome(run("a", measured=measured), 50.0) is BROKEN, "1.1 % came later"


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
