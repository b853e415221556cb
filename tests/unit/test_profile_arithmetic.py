"""Percentiles, answers in a window, time in which a GPU was busy."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.profile.arithmetic import answered_within, gpu_milliseconds, percentile, union_length

numbers = st.floats(-1e6, 1e6)


@given(st.lists(numbers, min_size=1))
def test_the_50th_percentile_is_the_median(values):
    assert percentile(values, 50) == pytest.approx(statistics.median(values), abs=1e-6)
    assert percentile(values, 0) == min(values)
    assert percentile(values, 100) == max(values)


@given(st.lists(numbers, min_size=2), st.floats(0, 100), st.floats(0, 100))
def test_percentiles_rise(values, one, other):
    low, high = sorted((one, other))
    assert percentile(values, low) <= percentile(values, high) + 1e-6


def test_a_percentile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_whole_batches_are_counted_whole():
    assert answered_within([0, 1, 2, 3, 4], 1, 3) == 2


def test_batches_at_the_edges_count_by_the_part_inside():
    # One of 10 s covers a window of 2 s: a fifth of a batch, where counting answers would say none.
    assert answered_within([0, 10], 4, 6) == pytest.approx(0.2)
    assert answered_within([0, 1, 2, 4], 0.5, 3) == pytest.approx(2.0)


@given(st.lists(st.floats(0.001, 5), min_size=1, max_size=40), st.floats(0, 1), st.floats(0, 1))
def test_windows_side_by_side_hold_what_both_hold_together(lengths, one, other):
    times = [0.0]
    for length in lengths:
        times.append(times[-1] + length)
    middle, end = sorted((one * times[-1], other * times[-1]))
    parts = answered_within(times, 0, middle) + answered_within(times, middle, end)
    assert parts == pytest.approx(answered_within(times, 0, end), abs=1e-6)
    assert answered_within(times, 0, times[-1]) == pytest.approx(len(lengths))


@pytest.mark.parametrize(("times", "begin", "end"), [([], 0, 1), ([0], 0, 0), ([0, 1], 0, 2), ([1, 2], 0, 2)])
def test_a_window_that_is_not_covered_is_refused(times, begin, end):
    with pytest.raises(ValueError, match="cover"):
        answered_within(times, begin, end)


def test_overlaps_count_once():
    assert union_length([(0, 4), (1, 2), (3, 6), (8, 9)]) == 7
    assert union_length([]) == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=30))
def test_the_union_is_the_number_of_points_covered(pairs):
    intervals = [(start, start + length) for start, length in pairs]
    covered = {point for start, end in intervals for point in range(start, end)}
    assert union_length(intervals) == len(covered)


def test_gpu_time_is_kernels_and_copies_side_by_side_once():
    events = [
        {"cat": "kernel", "ts": 1000.0, "dur": 500.0},
        {"cat": "gpu_memcpy", "ts": 1250.0, "dur": 500.0},  # overlaps by half
        {"cat": "gpu_memset", "ts": 3000.0, "dur": 250.0},
        {"cat": "cuda_runtime", "ts": 0.0, "dur": 9000.0},  # the host's call, not the GPU's work
        {"cat": "kernel", "name": "no times"},
        {"ph": "M", "name": "process_name"},
    ]
    assert gpu_milliseconds({"traceEvents": events}, 2) == pytest.approx(0.5)


@pytest.mark.parametrize("trace", [{}, {"traceEvents": []}, {"traceEvents": [{"cat": "cpu_op", "ts": 0, "dur": 1}]}])
def test_an_empty_trace_is_not_a_gpu_that_is_idle(trace):
    assert gpu_milliseconds(trace, 4) is None
