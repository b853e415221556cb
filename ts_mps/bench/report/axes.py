"""What all charts share: sizes, style, ticks, and names that do not lie on each other.

Only matplotlib's object interface is used. ``pyplot`` keeps figures in global state and asks for a display.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from matplotlib import style as styles
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from ts_mps.bench.report.palette import PAPER

#: CSS pixels; a point of matplotlib is a pixel here, so that a font size is one, too.
WIDE, NARROW = 720, 350

PAGE, INK, QUIET, LINE, BAND = (PAPER[name][0] for name in ("page", "ink", "quiet", "line", "band"))
#: Room that a letter takes, with something to spare: the page's font is not the one that is measured here.
LETTER = 6.6
FONT = 11.5

#: Any, because newer stubs of matplotlib name every key and older ones take any string.
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    # A model may be called "a$b$c": that is no formula.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": FONT,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "svg.fonttype": "none",
    "svg.hashsalt": "ts-mps",
}


@contextmanager
def style() -> Iterator[None]:
    """What holds while a chart is drawn and written, whatever the user's matplotlibrc says."""
    with styles.context(_STYLE, after_reset=True), warnings.catch_warnings():
        # A name in a script that the bundled font lacks: the page has a font for it, a PNG shows boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def spread_apart(wanted: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Places as near to the wanted ones as ``least`` between neighbours allows, kept within the bounds if they fit."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [min(max(wanted[index], low), high) for index in order]
    for place in range(1, len(placed)):
        placed[place] = max(placed[place], placed[place - 1] + least)
    top = high
    for place in range(len(placed) - 1, -1, -1):
        placed[place] = min(placed[place], top)
        top = placed[place] - least
    found = [0.0] * len(wanted)
    for index, value in zip(order, placed, strict=True):
        found[index] = value
    return found


def plain_log(ax: Axes, low: float, high: float, *, of_x: bool) -> None:
    """Ticks that people read: 1, 2, 5, 10; finer ones where the axis spans little. Never powers of ten."""
    axis = ax.xaxis if of_x else ax.yaxis
    ticks = log_ticks(low, high)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(plain))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def even_steps(most: int) -> MaxNLocator:
    """Ticks that hit whole numbers, 1 among them, which ratios are compared with."""
    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])


def log_ticks(low: float, high: float) -> list[float]:
    """At most eight values to label between two ends of a logarithmic axis."""
    if high / low < 3:
        return [float(value) for value in even_steps(6).tick_values(low, high) if low <= value <= high and value > 0]
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 8:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 8)]


def plain(value: float, place: int | None = None) -> str:
    """A tick as people write it: "0.5", "8", "2,000"."""
    return f"{value:,.10g}"


def short(label: str, width: int) -> str:
    """A name that fits beside the axes; the chart's text has it whole."""
    most = 16 if width == NARROW else 30
    return label if len(label) <= most else f"{label[: most - 1]}…"
