"""What TorchServe's frontend has been told so far: it only ever adds, so we remember for it.

Each collection is a process of its own, and the frontend has two habits. It adds what it is told to a counter, so a
counter must be told as its growth. And it keeps a gauge's last value for ever, also of a worker that is long gone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ts_mps.torchserve.metrics import Sample

#: Version of the JSON form.
REPORTED_VERSION = 1


@dataclass(frozen=True)
class Reported:
    """What one frontend knows.

    Attributes:
        java: The frontend, as "PID:START"; a new one knows nothing.
        counters: Series -> total that it was told.
        gauges: Series that it was given a value for.
    """

    java: str
    counters: dict[str, float] = field(default_factory=dict)
    gauges: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "version": REPORTED_VERSION,
            "java": self.java,
            "counters": self.counters,
            "gauges": list(self.gauges),
        }


def from_json(value: dict[str, Any] | None, java: str) -> Reported:
    """Read it back for the frontend ``java``: nothing, where it is missing or of another version.

    Counters of an earlier frontend are kept, see :func:`growth`.
    """
    if value is None or value.get("version") != REPORTED_VERSION:
        return Reported(java)
    return Reported(str(value["java"]), dict(value["counters"]), tuple(value["gauges"]))


def growth(before: Reported, java: str, totals: Sequence[Sample]) -> tuple[tuple[Sample, ...], Reported]:
    """What to tell the frontend so that its counters stand at ``totals``.

    A series that nobody has seen is told as 0 first, and its growth at the next collection: Prometheus takes the first
    value of a series as where it began, so ``increase()`` would miss whatever it began with. A frontend that was
    started anew gets the full total of the series that an earlier one had, whenever that is known again: to Prometheus
    the counter then goes on.

    Args:
        before: What the last collection left.
        java: The frontend that asks now.
        totals: Counters since the guardian's start, as far as they are known.
    """
    told, counters = [], dict(before.counters) if java == before.java else dict.fromkeys(before.counters, 0.0)
    for total in totals:
        key = _key(total)
        known = counters.get(key)
        counters[key] = 0.0 if known is None else total.value
        if known is None:
            told.append(replace(total, value=0))
        elif total.value < known:
            # Smaller than it was: the guardian was started anew and counts from 0.
            told.append(total)
        else:
            told.append(replace(total, value=total.value - known))
    return tuple(told), Reported(java, counters, before.gauges if java == before.java else ())


def ended(before: Reported, gauges: Sequence[Sample], covered: Collection[str]) -> tuple[tuple[Sample, ...], Reported]:
    """Series that have no value any more, with 0, which each gets once.

    Args:
        before: What the frontend was told.
        gauges: What it is told now.
        covered: Names that ``gauges`` are complete for; series of other names are left as they are.
    """
    now = {_key(sample): sample for sample in gauges}
    absent = {key: _sample(key) for key in before.gauges if key not in now}
    gone = tuple(sample for sample in absent.values() if sample.name in covered)
    kept = tuple(key for key, sample in absent.items() if sample.name not in covered)
    return gone, replace(before, gauges=(*now, *kept))


def _key(sample: Sample) -> str:
    return json.dumps([sample.name, sample.unit, sample.labels])


def _sample(key: str) -> Sample:
    name, unit, labels = json.loads(key)
    return Sample(name, 0, unit, tuple((label, value) for label, value in labels))
