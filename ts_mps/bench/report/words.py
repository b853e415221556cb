"""Figures as words: how a report writes a number, an interval, a p and a size."""

from __future__ import annotations

import math
from datetime import datetime

from ts_mps.bench.findings import Interval
from ts_mps.bench.records import Arm
from ts_mps.bench.wording import figure, share

#: Stands where there is no figure.
NONE = "–"  # noqa: RUF001 (a dash that a table reader takes for "none", not a minus)

_GIB = 2**30


def number(value: float | None) -> str:
    """A figure with as many digits as a reader can use, or the sign for none."""
    if value is None or not math.isfinite(value):
        return NONE
    return figure(value)


def interval(found: Interval | None) -> str:
    """Middle and range; the middle alone where there are too few runs for a range."""
    if found is None:
        return NONE
    if not math.isfinite(found.low + found.high) or found.low == found.high == found.middle:
        return number(found.middle)
    return f"{number(found.middle)} ({number(found.low)} to {number(found.high)})"


def times(found: Interval) -> str:
    """A ratio with its range: "1.42 (1.39 to 1.45)"; near 1 with a third decimal, so that 0.996 does not read 1.00."""
    if not math.isfinite(found.middle):
        return NONE
    digits = 3 if abs(found.middle - 1) < 0.1 else 2
    if not math.isfinite(found.low + found.high) or found.low == found.high == found.middle:
        return f"{found.middle:.{digits}f}"
    return f"{found.middle:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


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


def clock(text: str) -> str:
    """An instant of ISO 8601 without what only a program reads; as it is where it is none."""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}".rstrip()
    except ValueError:
        return text


def percent(part: float | None) -> str:
    """A part of one as a percentage, or the sign for none."""
    if part is None or not math.isfinite(part):
        return NONE
    return share(part).replace("less than", "<")


def gibibytes(size: int | None) -> str:
    """Bytes as GiB."""
    return NONE if size is None else f"{size / _GIB:.1f} GiB"


def load_name(kind: str, rate: float) -> str:
    """A load as a reader knows it."""
    if kind == "closed":
        return "closed loop"
    return f"{number(rate)} requests/s, {'Poisson' if kind == 'poisson' else kind}"


def series_name(arm: Arm, *, engines: bool, options: frozenset[str]) -> str:
    """What tells an arm from the others apart from workers and batch size: "MPS on, 50 %".

    Args:
        arm: The arm.
        engines: Whether the study has several, so that the engine must be named.
        options: Names of the options that are not the same in all arms.
    """
    parts = [arm.engine] if engines else []
    parts.append("CPU" if arm.device == "cpu" else "MPS on" if arm.mps else "MPS off")
    if arm.thread_percentage is not None:
        parts.append(f"{arm.thread_percentage:g} %")
    parts += [f"{name} {value}" for name, value in sorted(arm.options.items()) if name in options]
    return ", ".join(parts)
