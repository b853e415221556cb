"""What changed between two studies, as a chapter for a terminal or a pull request."""

from __future__ import annotations

from ts_mps.bench.difference import Difference
from ts_mps.bench.report.parts import Chapter, Column, Part, Table
from ts_mps.bench.wording import load, number, times


def change_chapter(found: Difference, before: str, after: str) -> Chapter:
    """The chapter.

    Args:
        found: The two studies, compared.
        before: File name of the first.
        after: Of the second.
    """
    missing = tuple(
        f"Only in {name}, or without a run that counts in the other: {', '.join(arms)}."
        for name, arms in ((before, found.only_before), (after, found.only_after))
        if arms
    )
    cautions = tuple(
        f"{one.kind.capitalize()}. {f'{one.arm}: ' if one.arm else ''}{one.text}" for one in found.cautions
    )
    parts = [Part("changes", "What changed", missing, tables=(_table(found),) if found.changes else ())]
    if cautions:
        parts.append(Part("cautions", "Read with care", bullets=cautions))
    facts = (
        ("Before", f"{before}: {found.before}"),
        ("After", f"{after}: {found.after}"),
        ("Margin", f"{100 * found.margin:g} %"),
    )
    return Chapter("diff", f"{before}, {after}", f"{after} against {before}", found.headline, facts, tuple(parts))


def _table(found: Difference) -> Table:
    columns = (
        Column("Arm", numeric=False),
        Column("Load", numeric=False),
        Column("Measure", numeric=False),
        Column("Before"),
        Column("After"),
        Column("Ratio (95 % interval)"),
        Column("Runs"),
        Column("Verdict", numeric=False),
    )
    rows = tuple(
        (
            one.arm,
            load(one.kind, one.rate),
            "requests/s" if one.measure == "throughput" else "p99 ms (lower is better)",
            number(one.before),
            number(one.after),
            times(one.ratio),
            str(one.ratio.runs),
            one.verdict,
        )
        for one in found.changes
    )
    return Table("Arms that both have", columns, rows)
