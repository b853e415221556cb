"""Who runs on which cores, and how busy they were."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.bench.cores import core_list, divide, pinned, usable_cores
from ts_mps.bench.sampling import Sampler
from ts_mps.bench.usage import CpuSeconds, busy_cores, cpu_seconds
from ts_mps.errors import PreflightError


@given(st.sets(st.integers(0, 300), min_size=2, max_size=64), st.data())
def test_the_two_sides_are_disjoint_and_neither_is_empty(usable, data):
    wanted = data.draw(st.none() | st.integers(1, len(usable) - 1))
    near = data.draw(st.sets(st.sampled_from(sorted(usable))))
    division = divide(usable, wanted, near=near, siblings=[(core, core + 100) for core in range(100)])
    assert set(division.server) | set(division.generator) == usable
    assert not set(division.server) & set(division.generator)
    assert division.server and len(division.generator) == (wanted or max(1, len(usable) // 4))


def test_two_cores_give_one_each():
    division = divide((0, 1))
    assert (division.server, division.generator) == ((0,), (1,))


def test_the_generator_is_far_from_the_gpu_and_shares_no_core_with_the_server():
    siblings = [(core, core + 8) for core in range(8)]
    division = divide(range(16), 4, near=(0, 1, 2, 3, 8, 9, 10, 11), siblings=siblings)
    assert division.generator == (6, 7, 14, 15)
    assert not any(set(pair) & set(division.server) and set(pair) & set(division.generator) for pair in siblings)


@pytest.mark.parametrize(("usable", "wanted"), [((3,), None), ((0, 1), 2), ((0, 1, 2, 3), 9)])
def test_a_division_that_leaves_nothing_is_refused(usable, wanted):
    with pytest.raises(PreflightError):
        divide(usable, wanted)


def test_the_kernels_lists_are_read():
    assert core_list("0-3,8") == (0, 1, 2, 3, 8)
    with pytest.raises(ValueError, match="x"):
        core_list("x")


def test_what_is_started_inside_is_pinned_and_we_are_not_afterwards():
    before = usable_cores()
    with pinned(before[:1]):
        command = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
        seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert seen.strip() == str([before[0]])
    assert usable_cores() == before


def test_busy_cores_are_those_of_the_span_alone():
    samples = [(float(second), CpuSeconds(2.0 * max(0, second - 3), 5.0)) for second in range(10)]
    assert busy_cores(samples, 4.0, 8.0) == (2.0, 0.0)
    assert busy_cores(samples, 2.0, 4.0) == (1.0, 0.0)
    assert busy_cores(samples, 3.5, 4.5)[0] == pytest.approx(2.0)
    assert busy_cores(samples[:1], 0.0, 1.0) == busy_cores(samples, 5.0, 5.0) == (0.0, 0.0)


def test_seconds_of_a_worker_that_died_are_not_negative_work():
    assert busy_cores([(0.0, CpuSeconds(1.0, 9.0)), (1.0, CpuSeconds(1.5, 0.0))], 0.0, 1.0) == (0.5, 0.0)


def test_a_process_that_computes_is_seen_and_one_that_is_gone_is_not():
    code = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
    spinning = subprocess.Popen([sys.executable, "-c", code])
    try:
        with Sampler(lambda: cpu_seconds([os.getpid()], [spinning.pid, 2**22 + 1]), interval=0.1) as sampler:
            time.sleep(1.0)
        samples = sampler.samples()
        # Others use this machine too, so it may not get a core of its own.
        assert 0.2 < busy_cores(samples, samples[0][0], samples[-1][0])[1] < 1.3
        assert samples[-1][1].frontend > 0
    finally:
        spinning.kill()
        spinning.wait()
    assert cpu_seconds([], [spinning.pid]) == CpuSeconds(0.0, 0.0)
