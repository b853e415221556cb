"""The answer first: whether MPS pays here, by how much, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ts_mps.bench import wording
from ts_mps.bench.cells import Cell, fastest, why_not
from ts_mps.bench.figures import ceiling_of, errors_share, limit_of
from ts_mps.bench.findings import Contrast
from ts_mps.bench.records import Study
from ts_mps.bench.statistics import BETTER, FEWEST, OPEN, SAME, WORSE

#: What is said of several groups of arms; "for" and their names follow.
_OF_GROUPS = {
    BETTER: "MPS pays",
    SAME: "MPS makes no difference",
    WORSE: "MPS does not pay",
    OPEN: "it is not decided whether MPS pays",
}
#: What besides the GPU limits an arm, in words.
_LIMITS = {"generator": "The load generator", "frontend": "The frontend", "host cores": "The host's cores"}
#: Part of an arm's requests without a good answer from which on the first sentence is followed by it.
_ERRORS = 0.01


def headline(study: Study, found: Sequence[Cell], best: Sequence[Contrast], contrasts: Sequence[Contrast]) -> str:
    """One or two sentences.

    Args:
        study: The study.
        found: Its cells.
        best: From ``contrasts.best_contrasts``.
        contrasts: From ``contrasts.contrasts``.
    """
    if not any(cell.runs for cell in found):
        return _nothing(study)
    answers = _answers(study, best)
    if not answers:
        return f"{_no_answer(study, found)} {_fastest(found, contrasts)}"
    if len({arm.group for arm in study.arms if not arm.noop}) > 1:
        return _of_groups(study, answers)
    return " ".join((_answer(answers[0], found), *_but(answers[0], found), _same_cells(study, contrasts))).strip()


def _answers(study: Study, best: Iterable[Contrast]) -> list[Contrast]:
    """For each group the best cell with MPS against the best without, of ts-mps where there is one."""
    chosen: dict[str, Contrast] = {}
    for contrast in best:
        arm, baseline = study.arm(contrast.arm), study.arm(contrast.baseline)
        answers = arm.mps and not baseline.mps and arm.engine == baseline.engine and baseline.device == "gpu"
        if answers and (arm.engine == "ts-mps" or arm.group not in chosen):
            chosen[arm.group] = contrast
    return list(chosen.values())


def _answer(contrast: Contrast, found: Sequence[Cell]) -> str:
    rates = {cell.arm.name: cell.throughput for cell in found if cell.kind == "closed"}
    arm = f"{contrast.arm}; {wording.number(rates[contrast.arm])} requests/s"
    baseline = f"{contrast.baseline}; {wording.number(rates[contrast.baseline])}"
    figures = (
        f"the best arm with it ({arm}) answers {wording.ratio(contrast.ratio)} times as many requests as the best "
        f"without it ({baseline})"
    )
    pairs = wording.count(contrast.ratio.runs, "pair") + " of runs"
    undecided = "Whether MPS pays here is not decided"
    if contrast.ratio.runs < FEWEST:
        return f"{undecided}: a claim needs {FEWEST} pairs of runs. In {pairs} so far, {figures}."
    if contrast.verdict == OPEN:
        return f"{undecided} at a margin of {wording.share(contrast.margin)}: {figures}, in {pairs}."
    start = f"{_OF_GROUPS[contrast.verdict]} here"
    p = "" if contrast.p is None else f" (p = {contrast.p:.2g})"
    return f"{start}: {figures}, in {pairs}{p}."


def _but(contrast: Contrast, found: Sequence[Cell]) -> list[str]:
    """What else stands behind the two figures: a ratio of arms that something else limits is not one of MPS."""
    cells = {cell.arm.name: cell for cell in found if cell.kind == "closed" and cell.runs}
    limited: dict[str, list[str]] = {}
    told = []
    for name in (contrast.arm, contrast.baseline):
        cell = cells[name]
        if limit := limit_of(cell, ceiling_of(cell, found)):
            limited.setdefault(limit, []).append(name)
        if (errors := errors_share(cell)) >= _ERRORS:
            told.append(f"{wording.share(errors)} of the requests to {name} had no good answer.")
    limits = [
        f"{_LIMITS[limit]} limited {wording.listed(names)}: without that the ratio may be another one."
        for limit, names in limited.items()
    ]
    return [*limits, *told]


def _same_cells(study: Study, contrasts: Sequence[Contrast]) -> str:
    """What MPS does where nothing else is changed; empty where there is one such comparison or none."""
    twins = [contrast for contrast in contrasts if contrast.kind == "closed" and _only_mps(study, contrast)]
    if len(twins) < 2:
        return ""
    verdicts = Counter(contrast.verdict for contrast in twins)
    words = ((BETTER, "is better"), (WORSE, "is worse"), (SAME, "makes no difference"), (OPEN, "is undecided"))
    told = [f"{word} in {verdicts[verdict]}" for verdict, word in words if verdicts[verdict]]
    return f"Of {len(twins)} comparisons at the same workers and batch size, MPS {wording.listed(told)}."


def _only_mps(study: Study, contrast: Contrast) -> bool:
    arm, baseline = study.arm(contrast.arm), study.arm(contrast.baseline)
    return (
        arm.mps
        and not baseline.mps
        and arm.thread_percentage is None
        and (arm.workers, arm.batch_size, arm.engine) == (baseline.workers, baseline.batch_size, baseline.engine)
    )


def _of_groups(study: Study, answers: Sequence[Contrast]) -> str:
    clauses = []
    for verdict, words in _OF_GROUPS.items():
        groups = [
            f"{study.arm(contrast.arm).group}: {wording.ratio(contrast.ratio)}"
            for contrast in answers
            if contrast.verdict == verdict
        ]
        if groups:
            clauses.append(f"{words} for {wording.listed(groups)}")
    answered = {study.arm(contrast.arm).group for contrast in answers}
    if silent := dict.fromkeys(arm.group for arm in study.arms if arm.group not in answered and not arm.noop):
        clauses.append(f"there is no answer for {wording.listed(list(silent))}")
    text = "; ".join(clauses)
    return (
        f"{text[0].upper()}{text[1:]}. The figures are the throughput of the best arm with MPS "
        "to that of the best without."
    )


def _no_answer(study: Study, found: Sequence[Cell]) -> str:
    start = "This study does not say whether MPS pays:"
    for mps, word in ((True, "on"), (False, "off")):
        arms = [arm.name for arm in study.arms if arm.mps == mps and arm.device == "gpu" and not arm.noop]
        if not arms:
            return f"{start} it has no arm on a GPU with MPS {word}."
        if not any(cell.runs for cell in found if cell.arm.name in arms and cell.kind == "closed"):
            failed = next((run for run in study.runs if run.arm in arms and why_not(run)), None)
            why = f" ({why_not(failed).rstrip('.')})" if failed else ""
            return f"{start} no closed-loop run with MPS {word} counts{why}."
    return f"{start} no engine and group has runs in one block both with MPS on and with MPS off."


def _fastest(found: Sequence[Cell], contrasts: Sequence[Contrast]) -> str:
    best = fastest(cell for cell in found if not cell.arm.noop)
    if best is None:
        return "No closed loop was measured."
    start = f"The fastest arm is {best.arm.name} with {wording.number(best.throughput)} requests/s"
    for contrast in contrasts:
        if contrast.arm == best.arm.name and contrast.kind == "closed":
            return f"{start}. {contrast.why}"
    return f"{start}."


def _nothing(study: Study) -> str:
    if not study.runs:
        return f"Nothing was measured. {study.incomplete}".strip()
    why = why_not(study.runs[0])
    runs = f"none of {wording.count(len(study.runs), 'run')} counts" if len(study.runs) > 1 else "the only run failed"
    return f"Nothing was measured: {runs}. The first: {why}"
