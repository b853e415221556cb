"""How findings write figures in their sentences."""

from __future__ import annotations

from collections.abc import Sequence

from ts_mps.bench.findings import Interval


def figure(value: float) -> str:
    """Three digits that count, and whole numbers from 100 on."""
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.0995 or value == 0 else f"{value:.2g}"


def share(part: float) -> str:
    """A part of one as a percentage; what is not zero never reads as zero."""
    if 0 < part < 0.0001:
        return "less than 0.01 %"
    return f"{100 * part:.2g} %" if part < 0.1 else f"{100 * part:.0f} %"


def ratio(found: Interval) -> str:
    """ "1.41 (95 % interval 1.38 to 1.45)"; the middle alone where there is no interval."""
    if found.low == found.high:
        return f"{found.middle:.2f}"
    # Near 1 two decimals would turn 0.996 into "1.00".
    digits = 3 if abs(found.middle - 1) < 0.1 else 2
    return f"{found.middle:.{digits}f} (95 % interval {found.low:.{digits}f} to {found.high:.{digits}f})"


def count(number: int, one: str, many: str = "") -> str:
    """ "1 pair", "3 pairs"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def load(kind: str, rate: float) -> str:
    """A load as it stands in a sentence: "closed loop", "120 requests/s (poisson)"."""
    return "closed loop" if kind == "closed" else f"{figure(rate)} requests/s ({kind})"
