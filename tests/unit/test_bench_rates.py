"""The search for the largest rate."""

from __future__ import annotations

import pytest
from benching import histogram, result, run
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.bench.rates import held, largest_rate


@given(st.floats(10, 1e5), st.floats(0, 1.2), st.integers(1, 10))
def test_the_truth_lies_between_what_held_and_what_broke(ceiling, part, steps):
    truth, tried = ceiling * part, []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= truth

    found = largest_rate(holds, ceiling, steps)
    assert found.rate <= truth or found.rate == 0
    assert found.broken is None or found.broken > truth
    assert len(tried) == steps and all(0 < rate < ceiling for rate in tried)
    high = ceiling if found.broken is None else found.broken
    assert high - found.rate == pytest.approx(ceiling / 2**steps, abs=0.002)


def test_a_rate_holds_if_enough_of_what_was_sent_came_in_time():
    latencies = histogram([10.0] * 989 + [90.0] * 11)
    measured = result(throughput=100, kind="poisson", rate=100, sent=1000, answered=1000, histogram=latencies)
    assert held(run("a", measured=measured), 100.0)
    assert not held(run("a", measured=measured), 50.0), "1.1 % came later"


def test_what_failed_is_late_for_ever():
    measured = result(kind="poisson", rate=100, sent=1000, answered=980, histogram=histogram([10.0] * 980))
    assert not held(run("a", measured=measured), 50.0)
    fine = result(kind="poisson", rate=100, sent=1000, answered=1000, histogram=histogram([10.0] * 1000))
    assert held(run("a", measured=fine), 50.0)
    assert not held(run("a", measured=fine, failure="A worker died."), 50.0)
    void = result(kind="poisson", rate=100, void="It fell behind.", histogram=histogram([10.0] * 1000))
    assert not held(run("a", measured=void), 50.0)
    assert not held(run("a", failure="It never got ready."), 50.0)
