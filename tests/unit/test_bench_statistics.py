"""The statistics against known answers: scipy's exact tests, and simulations with a known truth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ts_mps.bench.statistics import (
    BETTER,
    OPEN,
    SAME,
    WORSE,
    Judgement,
    expanded_level,
    judge,
    median_interval,
    ratio_interval,
    signed_rank_p,
)

ALTERNATIVES = ["two-sided", "greater", "less"]


def simulated(
    comparisons: int, pairs: int, noise: float, truth: float = 1.0, seed: int = 11, lower_is_better: bool = False
) -> list[Judgement]:
    """Comparisons of an arm whose true ratio to its baseline is ``truth``; ``noise`` is the sd of one run."""
    random = np.random.default_rng(seed)
    answer = []
    for _ in range(comparisons):
        drift = random.normal(0, 0.05, pairs)  # of the machine, from block to block: pairing must take it out
        arm = 1000 * truth * np.exp(drift + random.normal(0, noise, pairs))
        baseline = 1000 * np.exp(drift + random.normal(0, noise, pairs))
        answer.append(judge(arm.tolist(), baseline.tolist(), 0.03, lower_is_better))
    return answer


def verdicts(judgements: list[Judgement]) -> Counter[str]:
    return Counter(judgement.verdict for judgement in judgements)


@pytest.mark.parametrize("pairs", [6, 8, 10])
@pytest.mark.parametrize("noise", [0.01, 0.02])
def test_two_identical_arms_make_no_difference_in_95_of_100(pairs: int, noise: float) -> None:
    seen = verdicts(simulated(200, pairs, noise))
    assert seen[SAME] >= 190
    assert seen[BETTER] + seen[WORSE] == 0


@pytest.mark.parametrize(("pairs", "noise", "at_least"), [(6, 0.01, 198), (6, 0.02, 180), (10, 0.02, 195)])
def test_a_planted_10_percent_is_found(pairs: int, noise: float, at_least: int) -> None:
    faster, slower = (verdicts(simulated(200, pairs, noise, truth)) for truth in (1.1, 1 / 1.1))
    assert faster[BETTER] >= at_least
    assert slower[WORSE] >= at_least
    assert faster[SAME] + faster[WORSE] + slower[SAME] + slower[BETTER] == 0


@pytest.mark.parametrize("noise", [0.01, 0.02])
def test_what_is_exactly_at_the_margin_is_hardly_ever_called_beyond_it(noise: float) -> None:
    assert verdicts(simulated(200, 6, noise, 1.03))[BETTER] <= 10


@pytest.mark.parametrize(("pairs", "noise"), [(6, 0.02), (10, 0.02), (10, 0.04)])
def test_twice_the_margin_is_hardly_ever_called_no_difference(pairs: int, noise: float) -> None:
    assert verdicts(simulated(200, pairs, noise, 1.03**2))[SAME] <= 10


def test_noise_that_hides_a_difference_gives_no_verdict_instead_of_no_difference() -> None:
    assert verdicts(simulated(100, 6, 0.10))[SAME] <= 5


@pytest.mark.parametrize("pairs", [6, 8, 12])
@pytest.mark.parametrize("heavy", [False, True])
def test_the_interval_holds_the_truth_in_95_of_100(pairs: int, heavy: bool) -> None:
    random = np.random.default_rng(pairs)
    draw: Callable[[], np.ndarray] = (
        (lambda: random.standard_t(2, pairs)) if heavy else (lambda: random.normal(size=pairs))
    )
    intervals = [median_interval((5 + draw()).tolist()) for _ in range(300)]
    covered = sum(one.low <= 5 <= one.high for one in intervals)
    # 95 % of 300 is 285, less two standard errors of the simulation.
    assert covered >= 277


def test_the_interval_of_six_pairs_spans_all_of_them() -> None:
    interval = ratio_interval([1.1, 1.2, 1.3, 1.4, 1.5, 1.6], [1.0] * 6)
    assert interval.low == pytest.approx(1.1)
    assert interval.high == pytest.approx(1.6)
    assert interval.middle == pytest.approx(math.sqrt(1.3 * 1.4))
    assert interval.runs == 6


def test_the_expanded_level_nears_the_nominal_one_with_many_values() -> None:
    assert expanded_level([6]) > 0.99
    assert expanded_level([1000]) == pytest.approx(0.95, abs=0.001)


def test_the_same_figures_give_the_same_interval() -> None:
    arm, baseline = [3.1, 3.0, 3.3, 3.2, 2.9, 3.0, 3.4], [2.0, 2.1, 1.9, 2.0, 2.2, 2.1, 2.0]
    assert ratio_interval(arm, baseline) == ratio_interval(arm, baseline)


@given(st.lists(st.floats(0.5, 2.0), min_size=6, max_size=9), st.floats(0.1, 1000))
@settings(max_examples=25)
def test_a_judgement_does_not_depend_on_the_unit(ratios: list[float], unit: float) -> None:
    plain, scaled = judge(ratios, [1.0] * len(ratios)), judge([unit * r for r in ratios], [unit] * len(ratios))
    assert scaled.ratio.middle == pytest.approx(plain.ratio.middle)
    assert scaled.ratio.low == pytest.approx(plain.ratio.low)


@given(st.lists(st.floats(0.8, 1.25), min_size=6, max_size=9))
@settings(max_examples=25)
def test_arm_and_baseline_swapped_say_the_opposite(ratios: list[float]) -> None:
    there, back = judge(ratios, [1.0] * len(ratios)), judge([1.0] * len(ratios), ratios)
    assert back.ratio.middle == pytest.approx(1 / there.ratio.middle)
    assert back.p == pytest.approx(there.p)
    assert {there.verdict, back.verdict} in ({SAME}, {OPEN}, {BETTER, WORSE})


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("pairs", [1, 2, 6, 10, 30])
def test_the_p_is_scipys_exact_one_where_there_are_no_ties(pairs: int, alternative: str) -> None:
    logs = np.random.default_rng(pairs).normal(0.3, 1, pairs)
    expected = stats.wilcoxon(logs, alternative=alternative, method="exact").pvalue
    assert signed_rank_p(logs.tolist(), alternative) == pytest.approx(expected)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("logs", [[1, 1, -1, 2, 2, 3], [0, 0, 1, 2, -3, 3, 3], [0.5, -0.5, 0.5, -0.5, 1, 1, 1, -2]])
def test_with_ties_and_zeros_the_p_is_that_of_all_flipped_signs(logs: list[float], alternative: str) -> None:
    signed = np.sign(logs) * stats.rankdata(np.abs(logs))
    expected = stats.permutation_test(
        (signed,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        alternative=alternative,
        n_resamples=9999,
    ).pvalue
    assert signed_rank_p(logs, alternative) == pytest.approx(expected)


def test_the_smallest_p_of_six_pairs_is_two_of_sixty_four() -> None:
    assert signed_rank_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 64)
    assert signed_rank_p([0.1, 0.2, 0.3, 0.4, 0.5]) > 0.05


def test_figures_that_are_all_the_same_have_a_p_of_one_and_no_difference() -> None:
    assert signed_rank_p([0.0] * 6) == 1
    same = judge([7.0] * 6, [7.0] * 6)
    assert (same.verdict, same.p, same.ratio.middle) == (SAME, 1.0, 1.0)


@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_with_fewer_than_six_pairs_nothing_is_claimed_however_large_the_difference(pairs: int) -> None:
    judged = judge([10.0] * pairs, [1.0] * pairs)
    assert (judged.verdict, judged.p) == (OPEN, None)
    assert judged.ratio.low == judged.ratio.middle == judged.ratio.high
    assert judged.ratio.runs == pairs


def test_a_lower_latency_is_better() -> None:
    assert judge([50.0] * 6, [100.0] * 6, lower_is_better=True).verdict == BETTER
    assert judge([100.0] * 6, [50.0] * 6, lower_is_better=True).verdict == WORSE


def test_a_real_difference_near_the_margin_is_not_decided() -> None:
    judged = judge([1.02, 1.03, 1.04, 1.05, 1.06, 1.04], [1.0] * 6, 0.03)
    assert judged.p is not None
    assert judged.p < 0.05
    assert judged.verdict == OPEN


def test_the_margin_decides_what_matters() -> None:
    arm, baseline = [1.05, 1.06, 1.05, 1.06, 1.05, 1.06], [1.0] * 6
    assert judge(arm, baseline, 0.03).verdict == BETTER
    assert judge(arm, baseline, 0.10).verdict == SAME


def test_one_disturbed_run_of_twelve_does_not_decide_alone() -> None:
    arm = [1.50, 1.51, 1.49, 1.50, 1.52, 1.48, 1.50, 1.51, 1.49, 1.50, 1.51, 0.2]
    assert stats.ttest_1samp(np.log(arm), 0).pvalue > 0.1, "a test of means would be thrown off by the last pair"
    assert judge(arm, [1.0] * 12).verdict == BETTER


@pytest.mark.parametrize(
    ("arm", "baseline"),
    [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [-1.0]), ([math.nan], [1.0]), ([1.0], [math.inf])],
)
def test_what_has_no_ratio_is_refused(arm: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError, match=r"paired|above 0|finite"):
        judge(arm, baseline)


@pytest.mark.parametrize("margin", [0.0, -0.03, math.nan])
def test_a_margin_of_nothing_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        judge([1.0] * 6, [1.0] * 6, margin)


def test_an_unknown_alternative_is_refused() -> None:
    with pytest.raises(ValueError, match="two-sided"):
        signed_rank_p([1.0], "bigger")
