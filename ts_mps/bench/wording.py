"""Figures as words: how findings and reports write numbers, intervals, loads and times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from ts_mps.bench.findings import Interval

#: Stands where there is no figure.
NONE = "–"  # noqa: RUF001 (a dash that a table reader takes for "none", not a minus)

_GIB = 2**30


def number(value: float | None) -> str:
    """Three digits that count, and whole numbers from 100 on; the sign for none where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.0995 or value == 0 else f"{value:.2g}"


def share(part: float | None) -> str:
    """A part of one as a percentage; what is not zero never reads as zero."""
    if part is None or not math.isfinite(part):
        return NONE
    if 0 < part < 0.0001:
        return "less than 0.01 %"
    return f"{100 * part:.2g} %" if part < 0.1 else f"{100 * part:.0f} %"


def interval(found: Interval | None) -> str:
    """ "100 (90.0 to 110)"; the middle alone where there are too few runs for a range."""
    if found is None:
        return NONE
    if _alone(found):
        return number(found.middle)
    return f"{number(found.middle)} ({number(found.low)} to {number(found.high)})"


def times(found: Interval, what: str = "") -> str:
    """A ratio with its range: "1.42 (1.39 to 1.45)"; near 1 with a third decimal, so that 0.996 does not read 1.00.

    Args:
        found: The ratio.
        what: Stands before the range.
    """
    if not math.isfinite(found.middle):
        return NONE
    digits = 3 if abs(found.middle - 1) < 0.1 else 2
    if _alone(found):
        return f"{found.middle:.{digits}f}"
    return f"{found.middle:.{digits}f} ({what}{found.low:.{digits}f} to {found.high:.{digits}f})"


def ratio(found: Interval) -> str:
    """The same in a sentence, whose readers have no heading above: "1.41 (95 % interval 1.38 to 1.45)"."""
    return times(found, "95 % interval ")


def chance(p: float | None) -> str:
    """A permutation p in words: how often chance alone gives a difference of this size."""
    if p is None or not math.isfinite(p):
        return "too few pairs"
    # Spaces that do not break: "p =" at the end of a line reads badly.
    if p < 0.001:
        return f"< 1 in 1,000 (p\u00a0=\u00a0{p:.1g})"
    if p < 0.1:
        return f"{p * 1000:.0f} in 1,000 (p\u00a0=\u00a0{p:.2g})"
    return f"{p * 100:.0f} in 100 (p\u00a0=\u00a0{p:.2g})"


def count(number: int, one: str, many: str = "") -> str:
    """ "1 pair", "3 pairs"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def load(kind: str, rate: float) -> str:
    """A load as a reader knows it: "closed loop", "120 requests/s (Poisson)"."""
    return "closed loop" if kind == "closed" else f"{number(rate)} requests/s ({arrivals(kind)})"


def arrivals(kind: str) -> str:
    """How an open loop's arrivals are planned; Poisson was a person."""
    return "Poisson" if kind == "poisson" else kind


def clock(text: str) -> str:
    """An instant of ISO 8601 without what only a program reads; as it is where it is none."""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}".rstrip()
    except ValueError:
        return text


def gibibytes(size: int | None) -> str:
    """Bytes as GiB."""
    return NONE if size is None else f"{size / _GIB:.1f} GiB"


def _alone(found: Interval) -> bool:
    return not math.isfinite(found.low + found.high) or found.low == found.high == found.middle
