"""From paired figures to a verdict: median ratio, its interval, an exact p, and what may be said at a margin.

Pure functions of numbers. A pair is an arm's figure and its baseline's from one block. All is done on logarithms of
ratios, so that "twice as fast" and "half as fast" are equally far from "the same"; a margin of 3 % is a factor of 1.03
either way.

**The interval** is the bootstrap interval of the median by the percentile method (``scipy.stats.bootstrap``), at
Hesterberg's expanded level. BCa, scipy's default, corrects with a jackknife, and the jackknife of a median is
inconsistent (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 11.6). The plain percentile interval
is a little narrow for few values: of six normal ones it ends between the two outermost on each side and covered the
truth in 93 % of 2,000 simulations. Expanding the level by Student's t (Hesterberg, What Teachers Should Know About the
Bootstrap, The American Statistician 69, 2015) mends that: of six pairs it spans all of them, which holds the true
median in 1 - 2/64 = 96.9 % of cases, whatever the continuous distribution.

**The p** is Wilcoxon's signed rank: the signs of the log ratios are flipped in all 2^n ways, as they would be if the
two arms of each block were only labels. Ranks, because one run that something disturbed must not decide alone. It is
exact for every n, ties and zeros included, as the 2^n sums are counted and not listed.

**The verdict**, from six pairs on (of five, no p can be below 2/32 = 0.06):

- "better" or "worse": p is at most 0.05, and the whole interval lies beyond the margin.
- "no difference": the median lies within the margin, and a difference of twice the margin is ruled out on both sides,
  each by the exact one-sided test at 0.05 (two one-sided tests, as for equivalence).
- "not decided": everything else. A real difference near the margin stays here until more blocks decide it.

Ruling out the margin itself would be the stricter equivalence. With six pairs and 2 % of noise two identical arms pass
that in only 43 % of comparisons, so it would rarely be said where it is true; hence twice the margin, which is a choice
and not a law. What it means here: the estimate is less than the margin, and twice the margin is ruled out.

How often that says what, in percent of 2,000 simulated comparisons at the margin of 3 % ("noise" is the standard
deviation of one run's throughput, normal on logarithms; "true" is the real ratio of the arms):

===== ========== ======= ================ =============== =============
pairs noise        true   no difference    not decided       better
===== ========== ======= ================ =============== =============
6     1 %         1.00         100              0               0
6     2 %         1.00          96              4               0
10    2 %         1.00          99.6            0.4             0
6     1 %         1.03          48             50               1.6
6     2 %         1.03          42             56               1.6
10    2 %         1.03          50             48               2.4
6     1 %         1.06           0             12              88
6     2 %         1.06           0.6           62              37
10    2 %         1.06           0.2           33              67
6     1 %         1.10           0              0             100
6     2 %         1.10           0              6              94
10    2 %         1.10           0              0             100
===== ========== ======= ================ =============== =============

With noise that has outliers (Student's t with 3 degrees of freedom, scaled to the same standard deviation) two
identical arms give "no difference" in 94.7 % with six pairs and 2 %, and in over 99 % in the other two rows.

A real difference of exactly the margin is called "no difference" about half the time: who cares for 3 % should ask for
a margin of 1.5 %, and make the blocks that it takes. Each verdict stands alone; no correction is made for many of them.
Identical arms were never called better or worse in these simulations, so many comparisons do not add up to false
winners at such noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ts_mps.bench.findings import Interval

#: Fewest pairs for a claim, and fewest values for an interval: the range of n values holds the true median in
#: 1 - 2^(1-n) of cases, of five in 93.75 %, of six in 96.9 %.
FEWEST = 6
CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
#: What is too small to matter, unless asked otherwise, as a part.
MARGIN = 0.03
#: The difference that "no difference" rules out, in margins.
RULED_OUT = 2.0

BETTER, WORSE, SAME, OPEN = "better", "worse", "no difference", "not decided"

_RESAMPLES = 9999
_SEED = 20240229


@dataclass(frozen=True)
class Judgement:
    """What pairs of figures say.

    Attributes:
        ratio: Of the arm's figures to the baseline's: median over the pairs.
        p: Two-sided exact p of "no difference"; None with fewer than ``FEWEST`` pairs.
        verdict: BETTER, WORSE, SAME or OPEN.
    """

    ratio: Interval
    p: float | None
    verdict: str


def median_interval(values: Sequence[float]) -> Interval:
    """Median and 95 % interval of figures; without an interval (both ends at the median) below ``FEWEST`` of them.

    Raises:
        ValueError: There is no value, or one is not finite.
    """
    data = _finite(values)
    middle = float(np.median(data))
    if len(data) < FEWEST:
        return Interval(middle, middle, middle, len(data))
    low, high = bootstrap((data,), lambda sample, axis: np.median(sample, axis=axis))
    return Interval(middle, low, high, len(data))


def ratio_interval(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Median of the ratios of paired figures, all above 0, with its interval as in :func:`median_interval`.

    Raises:
        ValueError: The two are not of one length, are empty, or hold what is not above 0.
    """
    logs = median_interval(_log_ratios(values, baseline).tolist())
    return Interval(math.exp(logs.middle), math.exp(logs.low), math.exp(logs.high), logs.runs)


def signed_rank_p(logs: Sequence[float], alternative: str = "two-sided") -> float:
    """Exact p of Wilcoxon's signed rank test that the differences lie symmetrically around 0.

    Args:
        logs: The differences.
        alternative: "two-sided"; "greater": they lie above 0; "less": below.

    Raises:
        ValueError: There is no value, one is not finite, or the alternative is none of these.
    """
    data = _finite(logs)
    # Ranks of ties are means of two integers: doubled, all sums are integers and can index an array. A difference of
    # 0 keeps its rank but has no sign to flip.
    doubled = np.rint(2 * stats.rankdata(np.abs(data))).astype(int)
    chances = np.ones(1)
    for step in doubled[data != 0]:
        flipped = np.zeros(step + 1)
        flipped[[0, step]] = 0.5
        chances = np.convolve(chances, flipped)
    seen = int(doubled[data > 0].sum())
    above, below = float(chances[seen:].sum()), float(chances[: seen + 1].sum())
    tails = {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}
    if alternative not in tails:
        raise ValueError(f"an alternative is one of {', '.join(tails)}, not {alternative}")
    return tails[alternative]


def judge(
    values: Sequence[float], baseline: Sequence[float], margin: float = MARGIN, lower_is_better: bool = False
) -> Judgement:
    """Judge an arm against its baseline; see the module for the rules.

    Args:
        values: The arm's figures, all above 0.
        baseline: The baseline's of the same blocks, in the same order.
        margin: What is too small to matter, as a part above 0.
        lower_is_better: The figure is a latency.

    Raises:
        ValueError: As in :func:`ratio_interval`, or the margin is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"a margin is above 0, not {margin}")
    logs = _log_ratios(values, baseline)
    ratio = ratio_interval(values, baseline)
    if len(logs) < FEWEST:
        return Judgement(ratio, None, OPEN)
    p = signed_rank_p(logs.tolist())
    beyond = side_beyond(ratio, margin)
    if beyond and p <= SIGNIFICANCE:
        return Judgement(ratio, p, name_of(beyond, lower_is_better))
    bound = RULED_OUT * math.log1p(margin)
    ruled_out = (
        signed_rank_p((logs - bound).tolist(), "less") <= SIGNIFICANCE
        and signed_rank_p((logs + bound).tolist(), "greater") <= SIGNIFICANCE
    )
    same = ruled_out and abs(math.log(ratio.middle)) <= math.log1p(margin)
    return Judgement(ratio, p, SAME if same else OPEN)


def side_beyond(ratio: Interval, margin: float) -> int:
    """1 if a whole interval of ratios lies above the margin, -1 if below it, else 0."""
    if ratio.low > 1 + margin:
        return 1
    return -1 if ratio.high < 1 / (1 + margin) else 0


def name_of(side: int, lower_is_better: bool) -> str:
    """BETTER or WORSE for a ratio on this side of 1."""
    return BETTER if (side > 0) != lower_is_better else WORSE


def bootstrap(samples: tuple[NDArray[np.float64], ...], statistic: Any) -> tuple[float, float]:
    """95 % interval of a statistic of one or more independent samples; the same for the same numbers.

    Args:
        samples: Each of at least two values.
        statistic: Called with as many arrays and the axis to go over.
    """
    drawn = stats.bootstrap(
        samples,
        statistic,
        n_resamples=_RESAMPLES,
        vectorized=True,
        confidence_level=expanded_level([len(sample) for sample in samples]),
        method="percentile",
        rng=np.random.default_rng(_SEED),
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def expanded_level(sizes: Sequence[int]) -> float:
    """The nominal level at which a percentile interval over samples of these sizes covers 95 % (Hesterberg 2015).

    The factor undoes that a bootstrap of n values has a variance of (n - 1)/n of the true one, of the smallest sample
    here; Student's t has the degrees of freedom of all of them.
    """
    smallest, freedom = min(sizes), sum(size - 1 for size in sizes)
    reach = math.sqrt(smallest / (smallest - 1)) * stats.t.ppf((1 - CONFIDENCE) / 2, freedom)
    return 1 - 2 * float(stats.norm.cdf(reach))


def _log_ratios(values: Sequence[float], baseline: Sequence[float]) -> NDArray[np.float64]:
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} figures cannot be paired with {len(baseline)}")
    above, below = _finite(values), _finite(baseline)
    if not (np.all(above > 0) and np.all(below > 0)):
        raise ValueError("a ratio needs figures above 0")
    logs: NDArray[np.float64] = np.log(above) - np.log(below)
    return logs


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.all(np.isfinite(data)):
        raise ValueError("a figure is missing or not a finite number")
    return data
