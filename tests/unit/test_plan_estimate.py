from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ts_mps.plan.estimate import CONTEXT_BYTES, LEAST_PEAK_BYTES, estimate_memory


def test_the_parts_of_an_estimate():
    memory = estimate_memory(2 * 2**30)
    assert (memory.context, memory.weights, memory.peak) == (520 * 2**20, 2 * 2**30, 2**30)
    assert memory.source == "estimate"
    assert estimate_memory(0).total == CONTEXT_BYTES + LEAST_PEAK_BYTES


@given(st.integers(0, 2**45), st.integers(0, 2**45))
def test_larger_weights_never_need_less(some, more):
    least, most = sorted((some, more))
    assert estimate_memory(least).total <= estimate_memory(most).total
    assert estimate_memory(least).total > least
