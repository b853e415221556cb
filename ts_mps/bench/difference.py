"""What changed between two studies: the same arms, measured at two times.

Runs of two studies are no pairs. The interval is the bootstrap of the ratio of the two medians over both sets of runs
(``scipy.stats.bootstrap``, level as in ``statistics``), and the verdict follows from it alone: "better" or "worse" if
the whole interval lies beyond the margin, "no difference" if the median lies within the margin and the whole interval
within twice the margin, else "not decided".

With six runs each and 2 % of noise two identical arms give "no difference" in 89 % of 1,000 simulations, with ten runs
in over 99 %; they were never called better or worse, and the interval held the truth in 98 % or more: it is on the wide
side.

The interval holds what varies from run to run within a study. What changed between the studies besides what was meant
to change (another neighbour, a warmer room) is not in it, so a difference here is weaker evidence than a contrast
within one study. What is known to have changed is told in the cautions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ts_mps.bench import wording
from ts_mps.bench.cells import P99, THROUGHPUT, Cell, cells, measured
from ts_mps.bench.contrasts import told
from ts_mps.bench.findings import Caution, Interval
from ts_mps.bench.records import Study
from ts_mps.bench.statistics import (
    BETTER,
    FEWEST,
    MARGIN,
    OPEN,
    RULED_OUT,
    SAME,
    WORSE,
    Judgement,
    bootstrap,
    name_of,
    side_beyond,
)

#: Verdicts in the order in which a reader wants them.
_ORDER = (WORSE, BETTER, SAME, OPEN)


@dataclass(frozen=True)
class Change:
    """One arm at one load in both studies.

    Attributes:
        arm: Its name.
        kind: Of the load, as in ``findings.ArmFigures``.
        rate: As there.
        measure: "throughput" in requests per second, or "p99" in milliseconds (lower is better).
        before: Median over the runs of the first study.
        after: Over those of the second.
        ratio: After to before; ``runs`` is the smaller number of runs.
        verdict: "better", "worse", "no difference" or "not decided".
        why: The verdict as a sentence with its figures.
    """

    arm: str
    kind: str
    rate: float
    measure: str
    before: float
    after: float
    ratio: Interval
    verdict: str
    why: str


@dataclass(frozen=True)
class Difference:
    """Two studies, compared.

    Attributes:
        headline: What changed, as a sentence.
        before: Title and start of the first study.
        after: Of the second.
        margin: What is too small to matter, as a part.
        changes: Arms and loads that both have runs of, in the first study's order.
        only_before: Arms that only the first has, or has runs of.
        only_after: The same of the second.
        cautions: What else is not the same: kinds "other machine", "other workload", "too few pairs" (here: runs),
            "incomplete".
    """

    headline: str
    before: str
    after: str
    margin: float
    changes: tuple[Change, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    cautions: tuple[Caution, ...]


def difference(before: Study, after: Study, *, margin: float = MARGIN) -> Difference:
    """Compare the arms that two studies share: the same name and the same setting.

    Raises:
        ValueError: The margin is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"a margin is above 0, not {margin}")
    olds, news = ([cell for cell in cells(study) if cell.runs] for study in (before, after))
    pairs = [
        (old, new)
        for old in olds
        for new in news
        if (old.arm, old.kind, old.rate) == (new.arm, new.kind, new.rate) and not old.arm.noop
    ]
    changes = tuple(_change(old, new, margin) for old, new in pairs)
    shared = {change.arm for change in changes}
    return Difference(
        headline=_headline(changes),
        before=f"{before.title} ({before.started})",
        after=f"{after.title} ({after.started})",
        margin=margin,
        changes=changes,
        only_before=tuple(arm.name for arm in before.arms if arm.name not in shared and not arm.noop),
        only_after=tuple(arm.name for arm in after.arms if arm.name not in shared and not arm.noop),
        cautions=(*_cautions(before, after), *_of_arms(before, after), *_of_pairs(pairs)),
    )


def judge_unpaired(
    after: Sequence[float], before: Sequence[float], margin: float = MARGIN, lower_is_better: bool = False
) -> Judgement:
    """Judge figures of one study against those of another; see the module for the rules. It has no p.

    Args:
        after: Figures above 0, one for each run of the second study.
        before: Of the first.
        margin: What is too small to matter, as a part above 0.
        lower_is_better: The figure is a latency.
    """
    logs = tuple(np.log(np.asarray(values, dtype=np.float64)) for values in (after, before))
    middle = math.exp(float(np.median(logs[0]) - np.median(logs[1])))
    runs = min(len(after), len(before))
    if runs < FEWEST:
        return Judgement(Interval(middle, middle, middle, runs), None, OPEN)
    low, high = bootstrap(logs, _log_ratio)
    ratio = Interval(middle, math.exp(low), math.exp(high), runs)
    if side := side_beyond(ratio, margin):
        return Judgement(ratio, None, name_of(side, lower_is_better))
    edge = math.log1p(margin)
    same = abs(math.log(middle)) <= edge and max(-low, high) <= RULED_OUT * edge
    return Judgement(ratio, None, SAME if same else OPEN)


def _log_ratio(after: NDArray[np.float64], before: NDArray[np.float64], axis: int) -> Any:
    return np.median(after, axis=axis) - np.median(before, axis=axis)


def _change(old: Cell, new: Cell, margin: float) -> Change:
    measure = THROUGHPUT if old.kind == "closed" else P99
    before, after = ([measured(result, measure) for result in cell.results] for cell in (old, new))
    judgement = judge_unpaired(after, before, margin, lower_is_better=measure == P99)
    return Change(
        arm=old.arm.name,
        kind=old.kind,
        rate=old.rate,
        measure=measure,
        before=float(np.median(before)),
        after=float(np.median(after)),
        ratio=judgement.ratio,
        verdict=judgement.verdict,
        why=told(
            f"{old.arm.name} in the second study",
            "in the first",
            measure,
            judgement,
            margin,
            runs=f"{len(after)} and {wording.count(len(before), 'run')}",
            needed=f"{FEWEST} runs of each",
        ),
    )


def _headline(changes: Sequence[Change]) -> str:
    if not changes:
        return "The two studies have no arm and load in common, so there is nothing to compare."
    clauses = []
    for verdict in _ORDER:
        here = [change for change in changes if change.verdict == verdict]
        if not here:
            continue
        extreme = max(here, key=lambda change: abs(math.log(change.ratio.middle)))
        clause = f"{verdict} in {len(here)} of {wording.count(len(changes), 'comparison')}"
        if len(here) == 1:
            clause += f": {_named(extreme)}"
        elif verdict in (BETTER, WORSE):
            clause += f", most in {_named(extreme)}"
        clauses.append(clause)
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def _named(change: Change) -> str:
    where = "" if change.kind == "closed" else f" at {wording.load(change.kind, change.rate)}"
    return f"{change.arm}{where} ({change.ratio.middle:.2f} times)"


def _cautions(before: Study, after: Study) -> Iterator[Caution]:
    for kind, old, new in (
        ("other machine", before.machine, after.machine),
        ("other workload", before.workload, after.workload),
    ):
        for text in _unlike(old, new):
            yield Caution(kind, "", text)
    for name, study in (("first", before), ("second", after)):
        if study.incomplete:
            yield Caution("incomplete", "", f"The {name} study was broken off: {study.incomplete}")


def _unlike(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """A sentence for each value that differs, with its way through nested tables: "versions.torch"."""
    for key in [*old, *(key for key in new if key not in old)]:
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _unlike(one, other, f"{where}{key}.")
        elif one != other:
            yield f"{where}{key} was {_shown(one)} and is {_shown(other)}."


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "not known"
    return "nothing" if value == [] else str(value)


def _of_arms(before: Study, after: Study) -> Iterator[Caution]:
    """Arms of one name that are not the same arm: they are not compared."""
    others = {arm.name: arm for arm in after.arms}
    for arm in before.arms:
        if arm.name in others and others[arm.name] != arm:
            text = f"It is set up differently in the two studies and is not compared: {arm} and {others[arm.name]}."
            yield Caution("other workload", arm.name, text)


def _of_pairs(pairs: Sequence[tuple[Cell, Cell]]) -> Iterator[Caution]:
    for old, new in pairs:
        where = wording.load(old.kind, old.rate)
        if min(len(old.runs), len(new.runs)) < FEWEST:
            text = (
                f"It has {len(old.runs)} and {wording.count(len(new.runs), 'run')} ({where}); "
                f"a claim needs {FEWEST} of each."
            )
            yield Caution("too few pairs", old.arm.name, text)
        loads = [
            {(one.load.connections, one.load.seconds, one.load.warm_up) for one in cell.results} for cell in (old, new)
        ]
        if loads[0] != loads[1]:
            told_loads = " and is ".join(
                wording.listed([f"{c} connections for {s:g} s after {w:g} s" for c, s, w in sorted(load)])
                for load in loads
            )
            yield Caution("other workload", old.arm.name, f"Its load ({where}) was {told_loads}.")
