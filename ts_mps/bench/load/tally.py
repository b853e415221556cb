"""What the generator's processes counted, and the result that they make together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ts_mps.bench.histogram import Collector, merged, percentile
from ts_mps.bench.records import Histogram, Load, LoadResult

#: Characters of the first error of each kind.
_KEPT = 500
#: An open loop is void if 1 % of its requests were sent later than this many milliseconds, ...
BEHIND_MS = 5.0
#: ... and later than this part of the median latency. Latencies count from the planned instant, so a late request is
#: as much too long as it was late: what is allowed is what may hide in a latency without changing what it says.
BEHIND_PART = 0.1


class Tally:
    """One process's counts of the counted time."""

    def __init__(self) -> None:
        self.latencies = Collector()
        self.lateness = Collector()
        self.answered = 0
        self.compared = 0
        self.errors: Counter[str] = Counter()
        self.first_errors: dict[str, str] = {}
        self.per_second: list[int] = []
        #: Connections that were at work when counting began.
        self.up = 0

    def answer(self, latency: float, second: float) -> None:
        """Count an answer.

        Args:
            latency: Seconds.
            second: When it was complete, in seconds since counting began.
        """
        self.answered += 1
        self.latencies.add(latency)
        place = int(second)
        if place >= len(self.per_second):
            self.per_second.extend([0] * (place + 1 - len(self.per_second)))
        self.per_second[place] += 1

    def error(self, kind: str, text: str) -> None:
        """Count a request that had no good answer, and keep what was said of the first of its kind."""
        self.errors[kind] += 1
        self.first_errors.setdefault(kind, text[:_KEPT])

    def report(self, cpu_seconds: float) -> dict[str, Any]:
        """All of it for Locust's messages, which carry lists, dicts, numbers and strings."""
        return {
            "latencies": [list(pair) for pair in self.latencies.histogram().counts],
            "lateness": [list(pair) for pair in self.lateness.histogram().counts],
            "answered": self.answered,
            "compared": self.compared,
            "errors": dict(self.errors),
            "first_errors": self.first_errors,
            "per_second": self.per_second,
            "up": self.up,
            "cpu_seconds": cpu_seconds,
        }


def result(load: Load, reports: Sequence[Mapping[str, Any]], *, seconds: float, cpu: float, cores: int) -> LoadResult:
    """What all processes saw together.

    Args:
        load: What was asked for.
        reports: Of :meth:`Tally.report`, one of each process.
        seconds: The counted time.
        cpu: Seconds of CPU that all processes used meanwhile.
        cores: That they could use.
    """
    latencies, lateness = (_merged(reports, name) for name in ("latencies", "lateness"))
    errors: Counter[str] = Counter()
    first_errors: dict[str, str] = {}
    for report in reports:
        errors.update(report["errors"])
        first_errors = {**report["first_errors"], **first_errors}
    length = int(seconds) + (seconds % 1 > 0)
    per_second = [0] * length
    for report in reports:
        # An answer to a request of the counted time may come after it; it is no answer per counted second.
        for place, count in enumerate(report["per_second"][:length]):
            per_second[place] += count
    answered = sum(report["answered"] for report in reports)
    behind_ms = percentile(lateness, 99) if lateness.counts else 0.0
    return LoadResult(
        load=replace(load, seconds=seconds),
        # Requests are counted where they end, so these are all that there are.
        sent=answered + errors.total(),
        answered=answered,
        errors=dict(errors),
        first_errors=first_errors,
        histogram=latencies,
        per_second=tuple(per_second),
        generator_cores=cpu / seconds,
        generator_limit=cores,
        behind_ms=behind_ms,
        void=_void(load, sum(report["up"] for report in reports), latencies, behind_ms),
        compared=sum(report["compared"] for report in reports),
    )


def _merged(reports: Sequence[Mapping[str, Any]], name: str) -> Histogram:
    return merged(Histogram(tuple((int(bucket), int(count)) for bucket, count in report[name])) for report in reports)


def _void(load: Load, up: int, latencies: Histogram, behind_ms: float) -> str:
    if load.kind == "closed":
        if up >= load.connections:
            return ""
        return (
            f"Only {up} of {load.connections} connections were at work when counting began: the warm-up is too short."
        )
    median = percentile(latencies, 50) if latencies.counts else 0.0
    allowed = max(BEHIND_MS, BEHIND_PART * median)
    if behind_ms <= allowed:
        return ""
    return (
        f"The generator fell behind its plan: 1 % of the requests were sent {behind_ms:.1f} ms late or later, and "
        f"{allowed:.1f} ms are allowed; it needs more cores or processes, or a lower rate."
    )
