"""The charts of a study, as data: what is drawn against what; nothing is drawn here."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

from ts_mps.bench.findings import Contrast, Interval, Summary
from ts_mps.bench.records import Arm, Study
from ts_mps.bench.report.parts import LineChart, Mark, Panel, Point, Row, RowChart, Series
from ts_mps.bench.report.series import in_words, lines_of, looks, panels
from ts_mps.bench.report.tables import is_twin
from ts_mps.bench.wording import arrivals, count, number, times

#: More would be a wall of small axes; the raw file has them all.
MOST_PANELS = 12


def ratios(study: Study, contrasts: Sequence[Contrast]) -> tuple[RowChart, ...]:
    """What MPS and its percentages change, as ratios around 1 with the margin as a band; a chart for each measure."""
    look = looks(study)
    charts = []
    for measure, title, better in (
        ("throughput", "Throughput, as a ratio, at the same workers and batch size", "above 1 is better"),
        ("p99", "99th percentile of latency, as a ratio, at the same rate", "below 1 is better"),
    ):
        found = [
            one
            for one in contrasts
            if one.measure == measure and _drawable(one.ratio) and one.arm in look and is_twin(study, one)
        ]
        if not found:
            continue
        rows = tuple(
            Row(
                _versus(one) if one.kind == "closed" else f"{_versus(one)}, {number(one.rate)}/s",
                look[one.arm].style,
                (Mark(one.ratio.middle, one.ratio.low, one.ratio.high),),
                f"{one.ratio.middle:.2f}",
            )
            for one in found
        )
        alt = " ".join(f"{row.label}: {times(one.ratio)}, {one.verdict}." for row, one in zip(rows, found, strict=True))
        label = f"ratio, {better}; band: too small to matter"
        charts.append(
            RowChart(f"ratio-{measure}", title, alt, label, rows, log_x=True, centre=1.0, margin=found[0].margin)
        )
    return tuple(charts)


def throughput(study: Study, summary: Summary) -> tuple[LineChart, ...]:
    """Closed-loop throughput against workers, and against the batch size, as far as the study has several."""
    closed = [found for found in summary.figures if found.kind == "closed" and _drawable(found.throughput)]
    charts = []
    for name, x_label, x, other, other_name, words in (
        ("workers", "workers", _workers, _batch, "batch size {:g}".format, "{} workers"),
        ("batch", "batch size", _batch, _workers, _workers_name, "batch size {}"),
    ):
        found = panels(study, closed, x=x, other=other, other_name=other_name, value=lambda one: one.throughput)
        if not found:
            continue
        ticks = sorted({point.x for panel in found for line in panel.series for point in line.points})
        charts.append(
            LineChart(
                f"throughput-{name}",
                f"Throughput against {'workers' if name == 'workers' else 'the batch size'} (requests/s)",
                in_words(found[:MOST_PANELS], words, "requests/s"),
                x_label,
                "requests/s",
                found[:MOST_PANELS],
                x_ticks=tuple(ticks),
                log_x=ticks[-1] >= 4 * ticks[0],
            )
        )
    return tuple(charts)


def percentiles(study: Study, summary: Summary) -> RowChart | None:
    """Latency percentiles of every arm under the closed loop."""
    look = looks(study)
    rows, words = [], []
    for found in summary.figures:
        known = [(percent, ms) for percent, ms in found.percentiles if math.isfinite(ms) and ms > 0]
        if found.kind != "closed" or found.arm not in look or not known:
            continue
        marks = tuple(Mark(ms, ms, ms, f"p{percent:g}") for percent, ms in known)
        by = dict(known)
        text = " / ".join(number(by.get(percent)) for percent in (50, 99))
        rows.append(Row(found.arm, look[found.arm].style, marks, text))
        words.append(f"{found.arm}: " + ", ".join(f"p{percent:g} {number(ms)} ms" for percent, ms in known))
    if not rows:
        return None
    return RowChart(
        "latency-percentiles",
        "Latency percentiles, closed loop (ms; at the right: p50 / p99)",
        ". ".join(words) + ".",
        "milliseconds",
        tuple(rows),
        log_x=True,
    )


def latency_by_rate(study: Study, summary: Summary) -> LineChart | None:
    """99th percentile (and, dashed, the median) against the rate of an open loop."""
    look = looks(study)
    lines: dict[tuple[str, str], dict[float, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for found in summary.figures:
        if found.kind == "closed" or found.arm not in look:
            continue
        for percent, ms in found.percentiles:
            if percent in (50, 99) and math.isfinite(ms) and ms > 0:
                lines[found.arm, found.kind][percent].append(Point(found.rate, ms, ms, ms))
    arms = {arm for arm, _ in lines}
    # Arms that differ in workers and batch size alone look the same, and have to be told apart by their whole names.
    unlike = len({look[arm].label for arm in arms}) == len(arms)
    kinds = len({kind for _, kind in lines}) > 1
    drawn: list[Series] = []
    for (arm, kind), by_percent in lines.items():
        name = f"{look[arm].label if unlike else arm}{f', {arrivals(kind)}' if kinds else ''}"
        for percent, points in sorted(by_percent.items(), reverse=True):
            (line,) = lines_of({look[arm]: points})
            drawn.append(Series(f"{name}, p{percent:g}", line.style, line.points, dashed=percent == 50))
    if not drawn:
        return None
    objective = next((rate.objective_ms for rate in summary.rates), None)
    panel = (Panel("", tuple(drawn)),)
    return LineChart(
        "latency-rate",
        "Latency against the arrival rate, open loop (ms)",
        in_words(panel, "{} requests/s", "ms"),
        "planned requests/s",
        "ms",
        panel,
        log_y=True,
        limit=objective,
        limit_label="" if objective is None else f"objective {objective:g} ms",
    )


def _versus(one: Contrast) -> str:
    """Both arms, what they share only once: "4 workers x 8: MPS on / MPS off"."""
    arm, baseline = one.arm.split(", "), one.baseline.split(", ")
    first = _alike(arm, baseline)
    last = _alike(arm[first:][::-1], baseline[first:][::-1])
    shared = [*arm[:first], *arm[len(arm) - last :]]
    rest = " / ".join(", ".join(parts[first : len(parts) - last]) or "no limit" for parts in (arm, baseline))
    return f"{', '.join(shared)}: {rest}" if shared else rest


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two names share before they differ."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _workers_name(workers: float) -> str:
    return count(int(workers), "worker")


def _workers(arm: Arm) -> float:
    return float(arm.workers)


def _batch(arm: Arm) -> float:
    return float(arm.batch_size)


def _drawable(found: Interval) -> bool:
    """Whether it can stand on an axis, a logarithmic one too."""
    return all(math.isfinite(end) and end > 0 for end in (found.low, found.middle, found.high))
