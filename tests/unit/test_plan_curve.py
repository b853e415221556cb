import pytest
from planning import model, profile

from ts_mps.errors import PlanError
from ts_mps.plan.curve import curve_of


def test_it_is_linear_between_what_was_measured_and_flat_after():
    curve = curve_of(model(profile=profile(on={1: 100, 2: 180, 4: 300})), mps=True)
    assert [curve.rate(workers) for workers in (0, 1, 2, 3, 4, 9)] == [0, 100, 180, 240, 300, 300]
    assert (curve.last, curve.peak) == (4, 300)


def test_with_and_without_mps_are_two_curves():
    measured = model(profile=profile(on={1: 90, 2: 180}, off={1: 100, 2: 120}))
    assert curve_of(measured, mps=True).rate(2) == 180
    assert curve_of(measured, mps=False).rate(2) == 120


def test_one_worker_alone_gives_a_flat_curve():
    curve = curve_of(model(profile=profile(milliseconds=7.6, gap=0.4)), mps=True)
    assert curve.rate(1) == curve.rate(5) == pytest.approx(1000), "8 requests in 8 ms"


def test_one_mode_alone_gives_a_flat_curve_for_the_other():
    curve = curve_of(model(profile=profile(off={2: 150, 4: 200}, runs=False)), mps=True)
    assert curve.rates == (0, 75)


def test_without_a_profile_a_second_worker_helps_under_mps_only():
    assert [curve_of(model(), mps=True).rate(workers) for workers in range(4)] == [0, 1, 1.5, 1.5]
    assert [curve_of(model(), mps=False).rate(workers) for workers in range(4)] == [0, 1, 1, 1]


def test_a_profile_of_another_batch_is_refused():
    with pytest.raises(PlanError, match=r"batches of 4, .*another batch.* measured at 8, 16"):
        mixed = profile(on={1: 100}, batch=8)
        other = profile(on={1: 100}, batch=16)
        both = mixed.__class__(**{**vars(mixed), "runs": mixed.runs + other.runs})
        curve_of(model(batch_size=4, profile=both), mps=True)


def test_percentages_bound_what_one_worker_answers():
    curve = curve_of(model(profile=profile(on={1: 1000}, limited={25: 39.6, 50: 15.6})), mps=True)
    assert curve.one_worker(None) == curve.one_worker(100) == float("inf")
    assert curve.one_worker(75) == curve.one_worker(50) == pytest.approx(500)
    assert curve.one_worker(49) == curve.one_worker(25) == pytest.approx(200)
    assert curve.one_worker(12.5) == pytest.approx(100), "below all of them in proportion"
    assert curve_of(model(profile=profile(off={1: 1000}, limited={25: 39.6})), mps=False).one_worker(25) == float("inf")
