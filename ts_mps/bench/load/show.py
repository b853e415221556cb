"""A result for the terminal."""

from __future__ import annotations

from ts_mps.bench.histogram import percentile
from ts_mps.bench.records import LoadResult

_PERCENTS = (50, 90, 95, 99, 99.9)


def table(found: LoadResult) -> str:
    """The figures of one load, latencies from all processes' counts together."""
    lines = [
        "",
        f"Counted for {found.load.seconds:.1f} s (ts-mps):",
        f"  {found.requests_per_second:.1f} requests/s answered, {found.answered} of {found.sent} requests",
    ]
    if found.histogram.counts:
        figures = "  ".join(f"p{percent:g} {percentile(found.histogram, percent):.1f}" for percent in _PERCENTS)
        origin = "sending" if found.load.kind == "closed" else "the planned instant"
        lines.append(f"  latency in ms from {origin} on: {figures}")
    for kind, count in sorted(found.errors.items()):
        lines.append(f"  {count} x {kind}: {found.first_errors.get(kind, '')}")
    if found.load.kind != "closed":
        lines.append(f"  1 % of the requests were sent {found.behind_ms:.2f} ms late or later")
    if found.compared:
        lines.append(f"  {found.compared} answers compared with recorded ones")
    lines.append(f"  the generator used {found.generator_cores:.2f} of {found.generator_limit} cores")
    if found.void:
        lines.append(f"  These figures do not count. {found.void}")
    return "\n".join(lines)
