"""Which arms are set against each other, and what is said of each pair of arms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ts_mps.bench import wording
from ts_mps.bench.arms import engine_rank
from ts_mps.bench.cells import P99, THROUGHPUT, Cell, fastest, paired, paired_best
from ts_mps.bench.findings import Contrast
from ts_mps.bench.records import Arm
from ts_mps.bench.statistics import BETTER, FEWEST, RULED_OUT, SAME, SIGNIFICANCE, WORSE, Judgement, judge


def contrasts(found: Sequence[Cell], margin: float) -> tuple[Contrast, ...]:
    """MPS against the same without, percentages against MPS without one, engines, then every arm against its baseline.

    The first engine is set against each other one at the same workers, batch size and state of MPS. The baseline is the
    first arm of the same group. No-op arms are compared with nothing. Closed loops are compared by throughput, as their
    latency follows from it (connections / throughput); open loops by the 99th percentile, as their throughput is what
    was planned.
    """
    by_load = [
        [cell for cell in found if (cell.kind, cell.rate) == load and not cell.arm.noop]
        for load in dict.fromkeys((cell.kind, cell.rate) for cell in found)
    ]
    twins = [pair for pairs in (_twins, _across) for here in by_load for pair in pairs(here)]
    first: dict[str, Arm] = {}
    for cell in found:
        if not cell.arm.noop:
            first.setdefault(cell.arm.group, cell.arm)
    against_first = [
        (cell, baseline)
        for here in by_load
        for cell in here
        for baseline in here
        if baseline.arm == first[cell.arm.group] and cell is not baseline and (cell, baseline) not in twins
    ]
    made = [_contrast(arm, baseline, margin) for arm, baseline in [*twins, *against_first]]
    return tuple(contrast for contrast in made if contrast is not None)


def best_contrasts(found: Sequence[Cell], margin: float) -> tuple[Contrast, ...]:
    """For each group the best cell against the best cell, by throughput; see ``cells.paired_best`` for the picking.

    First the best with MPS against the best without, for each engine; then the best of ts-mps against the best of each
    other engine, without MPS and at all, and on the CPU; then the best on the GPU against the best on the CPU.
    """
    answer: dict[tuple[str, str], Contrast] = {}
    for group in dict.fromkeys(cell.arm.group for cell in found):
        here = [
            cell
            for cell in found
            if cell.arm.group == group and cell.kind == "closed" and cell.runs and not cell.arm.noop
        ]
        for ours, theirs in _sides(here):
            contrast = _best(ours, theirs, margin)
            if contrast is not None:
                answer.setdefault((contrast.arm, contrast.baseline), contrast)
    return tuple(answer.values())


def told(
    arm: str, baseline: str, measure: str, judgement: Judgement, margin: float, runs: str = "", needed: str = ""
) -> str:
    """A verdict as a sentence with its figures.

    Args:
        arm: Name of the arm that is judged.
        baseline: Of the one that it is judged against.
        measure: THROUGHPUT or P99.
        judgement: What was found.
        margin: What is too small to matter, as a part.
        runs: What it stands on, in words; "8 pairs" unless given.
        needed: What a claim needs; "6 pairs" unless given.
    """
    ratio = judgement.ratio
    what = "throughput" if measure == THROUGHPUT else "99th percentile of latency"
    p = "" if judgement.p is None else f", p = {judgement.p:.2g}"
    figures = f"{wording.ratio(ratio)} times its {what}, {runs or wording.count(ratio.runs, 'pair')}{p}"
    limit = wording.share(margin)
    if judgement.verdict in (BETTER, WORSE):
        beyond = f"the whole interval is beyond the margin of {limit}."
        return f"{arm} is {judgement.verdict} than {baseline}: {figures}; {beyond}"
    if judgement.verdict == SAME:
        ruled_out = wording.share((1 + margin) ** RULED_OUT - 1)
        return (
            f"No difference between {arm} and {baseline}: {figures}; the median is within the margin of {limit}, and a "
            f"difference of {ruled_out} or more is ruled out."
        )
    start = f"Not decided between {arm} and {baseline}: {figures};"
    if ratio.runs < FEWEST:
        return f"{start} a claim needs {needed or f'{FEWEST} pairs'}."
    if not ratio.low <= 1 <= ratio.high and (judgement.p is None or judgement.p <= SIGNIFICANCE):
        return f"{start} there is a difference, but whether it is more than the margin of {limit} is not certain."
    return f"{start} too wide for the margin of {limit}. More blocks or longer runs would narrow it."


def _twins(here: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """(with MPS, the same without) and then (with a thread percentage, the same without one)."""
    plain = [cell for cell in here if cell.arm.thread_percentage is None]
    for arm in plain:
        yield from ((arm, other) for other in plain if arm.arm.mps and not other.arm.mps and _alike(arm, other))
    for arm in here:
        if arm.arm.thread_percentage is not None:
            yield from ((arm, other) for other in plain if other.arm.mps and _alike(arm, other))


def _across(here: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """(of the first engine, of another one) where nothing else differs."""
    engines = sorted({cell.arm.engine for cell in here}, key=engine_rank)
    for arm in here:
        if arm.arm.engine == engines[0]:
            yield from (
                (arm, other)
                for engine in engines[1:]
                for other in here
                if other.arm.engine == engine and _same_but_engine(arm.arm, other.arm)
            )


def _same_but_engine(one: Arm, other: Arm) -> bool:
    return replace(one, name="", engine="") == replace(other, name="", engine="")


def _alike(one: Cell, other: Cell) -> bool:
    """Whether two arms are the same but for MPS and its thread percentage."""
    a, b = one.arm, other.arm
    return (a.workers, a.batch_size, a.engine, a.device, a.group, dict(a.options)) == (
        (b.workers, b.batch_size, b.engine, b.device, b.group, dict(b.options))
    )


def _sides(here: Sequence[Cell]) -> Iterator[tuple[list[Cell], list[Cell]]]:
    gpu = [cell for cell in here if cell.arm.device == "gpu"]
    engines = dict.fromkeys(cell.arm.engine for cell in gpu)
    for engine in engines:
        yield _where(gpu, engine, mps=True), _where(gpu, engine, mps=False)
    cpu = [cell for cell in here if cell.arm.device == "cpu"]
    for engine in engines:
        if engine != "ts-mps":
            yield _where(gpu, "ts-mps"), _where(gpu, engine, mps=False)
            yield _where(gpu, "ts-mps"), _where(gpu, engine)
    for engine in dict.fromkeys(cell.arm.engine for cell in cpu):
        if engine != "ts-mps":
            yield _where(cpu, "ts-mps"), _where(cpu, engine)
    yield gpu, cpu


def _where(found: Iterable[Cell], engine: str, mps: bool | None = None) -> list[Cell]:
    return [cell for cell in found if cell.arm.engine == engine and mps in (None, cell.arm.mps)]


def _best(ours: Sequence[Cell], theirs: Sequence[Cell], margin: float) -> Contrast | None:
    arm, baseline = fastest(ours), fastest(theirs)
    if arm is None or baseline is None:
        return None
    return _judged(arm, baseline, THROUGHPUT, paired_best(ours, theirs), margin)


def _contrast(arm: Cell, baseline: Cell, margin: float) -> Contrast | None:
    measure = THROUGHPUT if arm.kind == "closed" else P99
    return _judged(arm, baseline, measure, paired(arm, baseline, measure), margin)


def _judged(
    arm: Cell, baseline: Cell, measure: str, figures: tuple[list[float], list[float]], margin: float
) -> Contrast | None:
    """None where there is no pair to judge by."""
    if not figures[0]:
        return None
    judgement = judge(*figures, margin=margin, lower_is_better=measure == P99)
    return Contrast(
        arm=arm.arm.name,
        baseline=baseline.arm.name,
        kind=arm.kind,
        rate=arm.rate,
        measure=measure,
        ratio=judgement.ratio,
        p=judgement.p,
        margin=margin,
        verdict=judgement.verdict,
        why=told(arm.arm.name, baseline.arm.name, measure, judgement, margin),
    )
