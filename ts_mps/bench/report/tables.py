"""The tables of a chapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ts_mps.bench.cells import why_not
from ts_mps.bench.findings import Contrast, Cost, RateFound, Summary
from ts_mps.bench.histogram import percentile
from ts_mps.bench.records import Run, Study
from ts_mps.bench.report.parts import Column, Table
from ts_mps.bench.wording import NONE, chance, clock, gibibytes, interval, load, number, share, times

#: What NVML calls busy is a GPU on which something always ran, however little of it.
_LIMITS = {"gpu": "GPU (never idle)", "": NONE}


def _columns(first: str, *others: str) -> tuple[Column, ...]:
    """A "~" at the end of a title marks a column of text."""
    return (
        Column(first, numeric=False),
        *(Column(name.rstrip("~"), numeric=not name.endswith("~")) for name in others),
    )


def contrast_table(title: str, contrasts: Sequence[Contrast], *, page_only: bool = False) -> Table:
    """Ratios with intervals, p in words and verdicts; the load only where it differs."""
    loads = len({(one.kind, one.rate) for one in contrasts}) > 1
    rows = tuple(
        (
            one.arm,
            one.baseline,
            *((load(one.kind, one.rate),) if loads else ()),
            one.verdict,
            times(one.ratio),
            chance(one.p),
            str(one.ratio.runs),
        )
        for one in contrasts
    )
    names = (*(("Load~",) if loads else ()), "Verdict~", "Ratio (95 % interval)", "By chance alone~", "Pairs")
    return Table(title, _columns("Arm", "Against~", *names), rows, page_only)


def contrast_tables(study: Study, contrasts: Sequence[Contrast]) -> tuple[Table, ...]:
    """Every contrast, sorted by what it tells: MPS and thread percentages, the baseline, latency."""
    latency = [one for one in contrasts if one.measure == "p99"]
    twins = [one for one in contrasts if one.measure != "p99" and is_twin(study, one)]
    others = [one for one in contrasts if one.measure != "p99" and not is_twin(study, one)]
    tables = (
        contrast_table("Throughput at the same workers and batch size", twins),
        contrast_table("Throughput against the baseline", others, page_only=bool(twins)),
        contrast_table("p99 latency at the same rate (below 1 is better)", latency, page_only=True),
    )
    return tuple(table for table in tables if table.rows)


def is_twin(study: Study, one: Contrast) -> bool:
    """Whether two arms differ in MPS or its thread percentage only."""
    arm, baseline = (
        replace(study.arm(name), name="", mps=False, thread_percentage=None) for name in (one.arm, one.baseline)
    )
    return arm == baseline


def figures_table(study: Study, summary: Summary) -> Table:
    """Every arm at every load, the no-op arms too."""
    goodput = any(found.goodput is not None for found in summary.figures)
    rows = []
    for found in summary.figures:
        by = dict(found.percentiles)
        rows.append(
            (
                found.arm,
                load(found.kind, found.rate),
                interval(found.throughput),
                *((interval(found.goodput),) if goodput else ()),
                *(number(by.get(part)) for part in (50, 90, 95, 99, 99.9)),
                share(found.errors),
                number(found.gpu_utilisation),
                gibibytes(found.gpu_memory),
                *(number(cores) for cores in (found.frontend_cores, found.worker_cores, found.generator_cores)),
                _LIMITS.get(found.bottleneck, found.bottleneck),
                f"{found.throughput.runs} ({found.failed} failed)" if found.failed else str(found.throughput.runs),
            )
        )
    names = (
        "Load~",
        "Requests/s (95 % interval)",
        *(("Goodput/s (95 % interval)",) if goodput else ()),
        *(f"{name} ms" for name in ("p50", "p90", "p95", "p99", "p99.9")),
        "Errors",
        "GPU busy %",
        "GPU memory",
        "Frontend cores",
        "Worker cores",
        "Generator cores",
        "Limited by~",
        "Runs",
    )
    return Table("Every arm", _columns("Arm", *names), tuple(rows), page_only=True)


def short_table(study: Study, summary: Summary, *, closed: bool) -> Table:
    """What most readers look for: throughput, latency, and what limits an arm; the no-op arms stand elsewhere."""
    rows = tuple(
        (
            found.arm,
            *(() if closed else (load(found.kind, found.rate),)),
            interval(found.throughput),
            *(number(dict(found.percentiles).get(part)) for part in (50, 99)),
            share(found.errors),
            _LIMITS.get(found.bottleneck, found.bottleneck),
        )
        for found in summary.figures
        if (found.kind == "closed") == closed and not study.arm(found.arm).noop
    )
    names = ("Requests/s (95 % interval)", "p50 ms", "p99 ms", "Errors", "Limited by~")
    if closed:
        return Table("Throughput and latency, closed loop", _columns("Arm", *names), rows)
    return Table("Latency by rate, open loop", _columns("Arm", "Planned rate~", *names), rows, page_only=True)


def rate_table(rates: Sequence[RateFound]) -> Table:
    """Largest rates that held."""
    rows = tuple(
        (found.arm, number(found.rate), number(found.broken), f"p99 within {found.objective_ms:g} ms")
        for found in rates
    )
    return Table(
        "Largest rates that held", _columns("Arm", "Held, requests/s", "Did not hold, requests/s", "Objective~"), rows
    )


def cost_table(costs: Sequence[Cost]) -> Table:
    """Prices of a million requests, cheapest first."""
    ordered = sorted(costs, key=lambda cost: cost.per_million)
    rows = tuple((cost.arm, number(cost.per_hour), number(cost.per_million)) for cost in ordered)
    return Table("What a million requests cost", _columns("Arm", "Price per hour", "Price per million requests"), rows)


def runs_table(study: Study) -> Table:
    """Every run in the order in which it was run, failed ones with their reasons."""
    names = (
        "Turn",
        "Arm~",
        "Load~",
        "Started~",
        "Requests/s",
        "Answered",
        "Errors~",
        "p50 ms",
        "p99 ms",
        "Ready s",
        "Clients",
        "Frontend cores",
        "Worker cores",
        "Generator cores",
        "GPU busy %",
        "SM MHz",
        "°C",
        "Throttled~",
        "Counts~",
    )
    return Table("All runs", _columns("Block", *names), tuple(_run(run) for run in study.runs), page_only=True)


def _run(run: Run) -> tuple[str, ...]:
    result = run.result
    seen: tuple[str, ...] = (NONE, NONE, NONE, NONE, NONE, NONE)
    if result is not None:
        errors = ", ".join(f"{count} x {name}" for name, count in result.errors.items() if count)
        counted = bool(result.histogram.counts)
        seen = (
            load(result.load.kind, result.load.rate),
            number(result.requests_per_second),
            f"{result.answered:,}",
            errors or "none",
            *(number(percentile(result.histogram, part)) if counted else NONE for part in (50, 99)),
        )
    busy = [sample.utilisation for sample in run.samples if sample.utilisation is not None]
    clocks = [sample.sm_clock for sample in run.samples if sample.sm_clock is not None]
    heat = [sample.temperature for sample in run.samples if sample.temperature is not None]
    throttled = sorted({reason for sample in run.samples for reason in sample.throttled})
    return (
        str(run.block),
        str(run.position),
        run.arm,
        seen[0],
        clock(run.started),
        *seen[1:],
        number(run.ready_seconds),
        str(run.clients),
        number(run.frontend_cores),
        number(run.worker_cores),
        NONE if result is None else f"{number(result.generator_cores)} of {result.generator_limit}",
        number(sum(busy) / len(busy)) if busy else NONE,
        f"{min(clocks):,}" if clocks else NONE,
        str(max(heat)) if heat else NONE,
        ", ".join(throttled) or NONE,
        f"no: {why}" if (why := why_not(run)) else "yes",
    )


def mapping_table(title: str, value: Mapping[str, Any]) -> Table:
    """Names and values of what is nested: the machine, the workload, the settings."""
    return Table(title, _columns("", "Value~"), tuple(flattened(value)))


def flattened(value: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """(name, text) of everything in nested mappings and lists; plain lists stay in one row."""
    rows: list[tuple[str, str]] = []
    for key, inner in value.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(inner, Mapping):
            rows += flattened(inner, f"{name}: ")
        elif isinstance(inner, list | tuple) and any(isinstance(one, Mapping) for one in inner):
            for place, one in enumerate(inner):
                rows += flattened(one if isinstance(one, Mapping) else {"": one}, f"{name} {place}: ")
        elif isinstance(inner, list | tuple):
            rows.append((name, ", ".join(map(str, inner)) or NONE))
        elif isinstance(inner, bool):
            rows.append((name, "yes" if inner else "no"))
        elif isinstance(inner, int) and str(key).endswith("memory") and inner >= 2**20:
            rows.append((name, gibibytes(inner)))
        else:
            rows.append((name, NONE if inner is None or inner == "" else str(inner)))
    return rows
