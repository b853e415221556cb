"""A study and what was found in it, composed into a chapter: verdict first, every run last."""

from __future__ import annotations

from ts_mps.bench import wording
from ts_mps.bench.cells import why_not
from ts_mps.bench.findings import Caution, RateFound, Summary
from ts_mps.bench.records import Study
from ts_mps.bench.report.charts import latency_by_rate, percentiles, ratios, throughput
from ts_mps.bench.report.method import method
from ts_mps.bench.report.over_time import gpu_charts
from ts_mps.bench.report.parts import Chapter, Part, Table
from ts_mps.bench.report.tables import (
    contrast_table,
    contrast_tables,
    cost_table,
    figures_table,
    mapping_table,
    rate_table,
    runs_table,
    short_table,
)

#: Of what a log's end says, as much as a reader will read.
_LOG_LETTERS = 4_000
#: More comparisons are easier to read as the table that follows.
_MOST_SENTENCES = 3
_TEXT_IS_ENOUGH = frozenset({"verdict", "losses", "method", "runs"})


def chapter(study: Study, summary: Summary, key: str, source: str) -> Chapter:
    """Everything that is said of one study.

    Args:
        study: What was measured.
        summary: What was found in it.
        key: Short and unique in the report.
        source: Name of the study's file.
    """
    parts = (
        _verdict(study, summary),
        _cautions(study, summary),
        Part(
            "throughput",
            "Throughput",
            ("Closed loop: equally many requests in flight for all arms. Bars are 95 % intervals over the runs.",),
            charts=throughput(study, summary),
            tables=_with_rows(short_table(study, summary, closed=True)),
        ),
        Part(
            "latency",
            "Latency",
            (
                "Under a closed loop latency is what saturation makes of it: more connections, longer waits. "
                "How long a user waits at a rate that the server can bear is what the open loop shows.",
            ),
            charts=tuple(chart for chart in (percentiles(study, summary), latency_by_rate(study, summary)) if chart),
            tables=_with_rows(short_table(study, summary, closed=False)),
        ),
        _rates(summary),
        Part(
            "gpu",
            "The GPU over time",
            (
                "As NVML says, twice a second, averaged over runs. Utilisation is the part of the time in which any "
                "kernel ran: 100 % does not mean that the GPU could do no more.",
            ),
            charts=gpu_charts(study),
        ),
        _losses(study, summary),
        Part("cost", "Cost", tables=_with_rows(cost_table(summary.costs))),
        Part("figures", "All figures", tables=_with_rows(figures_table(study, summary))),
        method(study),
        Part(
            "machine",
            "Machine and settings",
            tables=tuple(
                mapping_table(title, value)
                for title, value in (
                    ("Machine", study.machine),
                    ("Workload", study.workload),
                    ("Settings", study.settings),
                )
                if value
            ),
        ),
        _runs(study),
    )
    return Chapter(key, source, study.title, summary.headline, _facts(study), tuple(filter(_says_something, parts)))


def _with_rows(table: Table) -> tuple[Table, ...]:
    return (table,) if table.rows else ()


def _says_something(part: Part) -> bool:
    """A heading with an introduction to nothing is left out, except where the text is the message."""
    return bool(part.charts or part.tables or part.bullets or part.anchor in _TEXT_IS_ENOUGH)


def _facts(study: Study) -> tuple[tuple[str, str], ...]:
    """What a reader should know before the first figure."""
    counted = sum(not why_not(run) for run in study.runs)
    listed = study.machine.get("gpus")
    gpus = [gpu for gpu in listed if isinstance(gpu, dict)] if isinstance(listed, list) else []
    names = ", ".join(dict.fromkeys(str(gpu.get("name", "GPU")) for gpu in gpus))
    workload = [str(study.workload[name]) for name in ("name", "model") if study.workload.get(name)]
    facts = (
        ("Workload", ", ".join(dict.fromkeys(workload))),
        ("GPU", f"{len(gpus)} x {names}" if len(gpus) > 1 else names or "none"),
        ("Runs", f"{counted} of {len(study.runs)} count; {study.blocks} blocks planned"),
        ("Started", wording.clock(study.started)),
        ("Commit", str(study.machine.get("commit") or "")),
    )
    return tuple((name, value) for name, value in facts if value)


def _verdict(study: Study, summary: Summary) -> Part:
    text = []
    if not study.runs:
        text.append("This study has no runs: it was broken off before the first one ended.")
    elif all(map(why_not, study.runs)):
        text.append("No run of this study counts; the reasons stand with the runs below.")
    elif not summary.contrasts:
        text.append("No two arms of this study can be compared: no block has two of them that count.")
    if study.incomplete:
        text.append(f"The study is incomplete: {study.incomplete}")
    return Part(
        "verdict",
        "What was compared",
        tuple(text),
        tuple(one.why for one in summary.best) if len(summary.best) <= _MOST_SENTENCES else (),
        ratios(study, summary.contrasts),
        (
            *((contrast_table("Throughput, best against best", summary.best),) if summary.best else ()),
            *contrast_tables(study, summary.contrasts),
        ),
    )


def _cautions(study: Study, summary: Summary) -> Part:
    return Part("cautions", "Read with care", bullets=tuple(_caution(caution) for caution in summary.cautions))


def _caution(caution: Caution) -> str:
    about = f"{caution.arm}: " if caution.arm and caution.arm not in caution.text else ""
    return f"{caution.kind.capitalize()}. {about}{caution.text}"


def _rates(summary: Summary) -> Part:
    return Part(
        "rates",
        "Largest rate that holds the objective",
        (
            "Searched by bisection with Poisson arrivals, each rate tried once; latency is counted from the planned "
            "instant.",
        ),
        tuple(map(_behind, (found for found in summary.rates if found.behind is not None))),
        tables=_with_rows(rate_table(summary.rates)),
    )


def _behind(found: RateFound) -> str:
    held = f"It holds {wording.number(found.rate)}, and" if found.rate else "It"
    return (
        f"{found.arm}: at {wording.number(found.behind)} requests/s the load generator fell behind its plan by so much "
        f"that the limit may be the generator's. {held} may hold more than could be tried."
    )


def _losses(study: Study, summary: Summary) -> Part:
    title = "Where MPS loses"
    if summary.losses:
        why = tuple(one.why for one in summary.losses)
        return Part("losses", title, (), why, tables=(contrast_table("Contrasts that MPS loses", summary.losses),))
    if not any(arm.mps for arm in study.arms):
        return Part("losses", title, ("This study has no arm with MPS on.",))
    against = [one for one in summary.contrasts if study.arm(one.arm).mps and not study.arm(one.baseline).mps]
    decided = sum(one.verdict != "not decided" for one in against)
    if not decided:
        return Part("losses", title, ("Not known: no comparison of MPS on with MPS off is decided.",))
    return Part("losses", title, (f"In none of the {wording.count(decided, 'decided comparison')} with MPS off.",))


def _runs(study: Study) -> Part:
    failed = [run for run in study.runs if why_not(run)]
    text = (
        f"{wording.count(len(study.runs), 'run')}, in the order in which they were run"
        + (f"; {wording.count(len(failed), 'does', 'do')} not count." if failed else "; all count."),
    )
    bullets = tuple(f"Block {run.block}, {run.arm}: {why_not(run)}" for run in failed)
    logs = tuple(
        (f"Block {run.block}, {run.arm}: the end of its log", run.details[-_LOG_LETTERS:])
        for run in failed
        if run.details
    )
    return Part("runs", "All runs", text, bullets, tables=_with_rows(runs_table(study)), details=logs)
