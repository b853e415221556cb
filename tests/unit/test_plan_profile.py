import json
import math
from dataclasses import replace

import pytest
from planning import profile

from ts_mps.plan.profile import Profile

MEASURED = profile(on={1: 100, 2: 180}, off={1: 110}, limited={50: 12.0})


def read(value):
    """What a profile's file says, as ``ts-mps plan`` reads it."""
    return Profile.from_json(json.loads(json.dumps(value)))


def test_a_profile_is_what_was_written():
    assert read(MEASURED.as_json()) == MEASURED


@pytest.mark.parametrize(
    "change",
    [
        {"percentage": 0},
        {"percentage": -25},
        {"percentage": 250},
        {"percentage": math.nan},
        {"milliseconds": 0},
        {"milliseconds": math.nan},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"context": -1},
        {"peak": math.nan},
        {"weights": 1.5},
        {"weights": "1"},
    ],
)
def test_a_run_that_cannot_have_been_measured_is_refused(change):
    run = replace(MEASURED.runs[0], **change)
    with pytest.raises(ValueError, match=r"its run at batch size .* cannot have been measured"):
        read(replace(MEASURED, runs=(run,)).as_json())


@pytest.mark.parametrize(
    "change",
    [
        {"workers": 0},
        {"workers": 1.5},
        {"workers": 10**9},
        {"batch_size": -1},
        {"requests_per_second": 0},
        {"requests_per_second": math.inf},
    ],
)
def test_a_throughput_that_cannot_have_been_measured_is_refused(change):
    run = replace(MEASURED.scaling[0], **change)
    with pytest.raises(ValueError, match=r"its run of .* workers .* cannot have been measured"):
        read(replace(MEASURED, scaling=(run,)).as_json())


@pytest.mark.parametrize("gap", [-8.0, math.nan, math.inf])
def test_a_gap_that_cannot_have_been_measured_is_refused(gap):
    with pytest.raises(ValueError, match=r"its gap of .* cannot have been measured"):
        read(replace(MEASURED, gap_milliseconds=gap).as_json())


def test_a_profile_of_another_version_or_without_a_part_is_refused():
    with pytest.raises(ValueError, match="it is of version 99"):
        read({**MEASURED.as_json(), "version": 99})
    less = MEASURED.as_json()
    del less["scaling"]
    with pytest.raises(ValueError, match="it is not a profile: 'scaling'"):
        read(less)
