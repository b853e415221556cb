"""Row charts drawn: one row for each arm or contrast, with its marks, their range and a figure at the end."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ts_mps.bench.report.axes import BAND, FONT, INK, LETTER, NARROW, QUIET, plain_log
from ts_mps.bench.report.palette import colour, marker
from ts_mps.bench.report.parts import RowChart


def draw_rows(chart: RowChart, width: int) -> Figure:
    """The chart without its title, as in ``line_drawing.draw_lines``."""
    # On a phone a name stands above its row, as there is no room beside it.
    above = width == NARROW or max(len(row.label) for row in chart.rows) * LETTER > width * 0.45
    step = 36 if above else 24
    top = 26 if chart.rows[0].marks[0].label else 8
    height = top + step * len(chart.rows) + 46
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    left = 12 if above else max(len(row.label) for row in chart.rows) * LETTER + 14
    right = max(len(row.text) for row in chart.rows) * LETTER + 18
    ax = figure.add_axes((left / width, 46 / height, (width - left - right) / width, step * len(chart.rows) / height))
    marks = [mark for row in chart.rows for mark in row.marks]
    ends = [end for mark in marks for end in (mark.low, mark.high)]
    if chart.centre is not None:
        ends += [chart.centre * (1 - 2 * chart.margin), chart.centre * (1 + 2 * chart.margin)]
        ax.axvspan(chart.centre - chart.margin, chart.centre + chart.margin, color=BAND, linewidth=0)
        ax.axvline(chart.centre, color=QUIET, linewidth=1)
    low, high = min(ends), max(ends)
    if chart.log_x:
        ax.set_xscale("log")
        pad = max(1.02, (high / low) ** 0.04)
        low, high = low / pad, high * pad
        plain_log(ax, low, high, of_x=True)
    ax.set_xlim(low, high)
    ax.set_ylim(len(chart.rows) - 0.5, -0.5)
    ax.yaxis.set_major_locator(NullLocator())
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.set_xlabel(chart.x_label, labelpad=6)
    _marks(ax, chart, above=above)
    return figure


def _marks(ax: Axes, chart: RowChart, *, above: bool) -> None:
    for place, row in enumerate(chart.rows):
        y = place + (0.18 if above else 0)
        ends = [end for mark in row.marks for end in (mark.low, mark.high)]
        ax.plot([min(ends), max(ends)], [y, y], color=colour(row.style), linewidth=1.8, solid_capstyle="butt")
        for mark in row.marks:
            ax.plot([mark.at], [y], color=colour(row.style), marker=marker(row.style), markersize=5.5, clip_on=False)
        ax.annotate(
            row.label if len(row.label) < 52 else f"{row.label[:51]}…",
            (0, place - 0.22 if above else y), xycoords=("axes fraction", "data"),
            xytext=(0 if above else -10, 0), textcoords="offset points",
            ha="left" if above else "right", va="center", color=INK, annotation_clip=False,
        )  # fmt: skip
        ax.annotate(
            row.text, (1, y), xycoords=("axes fraction", "data"), xytext=(10, 0), textcoords="offset points",
            va="center", color=colour(row.style), annotation_clip=False,
        )  # fmt: skip
    taken = -math.inf
    for mark in chart.rows[0].marks:
        at = float(ax.transData.transform((mark.at, 0))[0])
        # Names that would lie on each other are left out; the text of the chart has them all.
        if mark.label and at - taken > len(mark.label) * LETTER:
            taken = at
            ax.annotate(
                mark.label, (mark.at, 1), xycoords=("data", "axes fraction"), xytext=(0, 6),
                textcoords="offset points", ha="center", color=QUIET, fontsize=FONT - 1.5, annotation_clip=False,
            )  # fmt: skip
