"""Line charts drawn: panels of one scale, intervals as bars, names at the ends of lines."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ts_mps.bench.report.axes import (
    FONT,
    LETTER,
    NARROW,
    PAGE,
    QUIET,
    even_steps,
    plain,
    plain_log,
    short,
    spread_apart,
)
from ts_mps.bench.report.palette import colour, marker
from ts_mps.bench.report.parts import LineChart, Panel


def draw_lines(chart: LineChart, width: int) -> Figure:
    """The chart without its title, which stands above it as text; within ``axes.style``.

    Args:
        chart: What is drawn.
        width: ``WIDE`` or ``NARROW``.
    """
    panels = chart.panels
    columns = 1 if len(panels) == 1 or width == NARROW else 2
    rows = math.ceil(len(panels) / columns)
    heights = 260 if len(panels) == 1 else 210
    figure = Figure(figsize=(width / 72, rows * heights / 72), dpi=72)
    letters = max(len(short(line.label, width)) for panel in panels for line in panel.series)
    left, right, gap = 62, letters * LETTER + 14, 62
    room = (width - left - right * columns - gap * (columns - 1)) / columns
    axes = [
        figure.add_axes(
            (
                (left + (place % columns) * (room + right + gap)) / width,
                1 - (place // columns + 1) / rows + 46 / (rows * heights),
                room / width,
                (heights - 80) / (rows * heights),
            )
        )
        for place in range(len(panels))
    ]
    low, high = _limits(chart)
    for place, (panel, ax) in enumerate(zip(panels, axes, strict=True)):
        _axis_lines(ax, chart, panel, low, high)
        ax.set_title(f"{chart.y_label}{' · ' + panel.title if panel.title else ''}", color=QUIET, pad=8)
        if place + columns >= len(panels):
            ax.set_xlabel(chart.x_label, labelpad=6)
        _end_labels(ax, panel, width)
    return figure


def _limits(chart: LineChart) -> tuple[float, float]:
    points = [point for panel in chart.panels for line in panel.series for point in line.points]
    high = max([point.high for point in points] + ([chart.limit] if chart.limit is not None else []))
    if not chart.log_y:
        return 0.0, chart.most or high * 1.08 or 1.0
    low = min([point.low for point in points] + ([chart.limit] if chart.limit is not None else []))
    return low / 1.3, high * 1.3


def _axis_lines(ax: Axes, chart: LineChart, panel: Panel, low: float, high: float) -> None:
    if chart.log_x:
        ax.set_xscale("log", base=2)
    if chart.log_y:
        ax.set_yscale("log")
        plain_log(ax, low, high, of_x=False)
    ax.set_ylim(low, high)
    if not chart.log_y:
        ax.yaxis.set_major_locator(even_steps(5))
        ax.yaxis.set_major_formatter(FuncFormatter(plain))
    ax.xaxis.set_major_locator(FixedLocator(list(chart.x_ticks)) if chart.x_ticks else even_steps(6))
    ax.xaxis.set_major_formatter(FuncFormatter(plain))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(axis="y")
    if chart.limit is not None:
        ax.axhline(chart.limit, color=QUIET, linewidth=1, linestyle=(0, (2, 2)))
        ax.annotate(
            chart.limit_label, (0, chart.limit), xycoords=("axes fraction", "data"), xytext=(4, 4),
            textcoords="offset points", color=QUIET, fontsize=FONT - 1,
            bbox={"facecolor": PAGE, "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    for line in panel.series:
        xs, ys = [point.x for point in line.points], [point.y for point in line.points]
        spread = [[p.y - p.low for p in line.points], [p.high - p.y for p in line.points]]
        ax.errorbar(
            xs,
            ys,
            yerr=spread if any(map(any, spread)) else None,
            color=colour(line.style),
            marker=marker(line.style) if len(xs) <= 12 else "",
            markersize=5,
            markerfacecolor=PAGE if line.dashed else colour(line.style),
            linestyle="--" if line.dashed else "-",
            linewidth=1.6,
            capsize=3,
        )


def _end_labels(ax: Axes, panel: Panel, width: int) -> None:
    """Names at the ends of lines, moved apart where they would lie on each other.

    Lines that reach the right part of the axes have their names beside them, the others at their last point.
    """
    ax.autoscale_view()  # else the data's place in the axes is not known before drawing
    left, bottom, across, height = ax.get_window_extent().bounds
    ends = [(line, *ax.transData.transform((line.points[-1].x, line.points[-1].y))) for line in panel.series]
    for late in (True, False):
        here = [(line, float(x), float(y)) for line, x, y in ends if (x > left + 0.8 * across) == late]
        placed = spread_apart([y for _, _, y in here], FONT + 2.5, bottom, bottom + height)
        for (line, x, _), y in zip(here, placed, strict=True):
            ax.annotate(
                short(line.label, width), (1 if late else (x - left) / across, (y - bottom) / height),
                xycoords="axes fraction", xytext=(8, 0), textcoords="offset points", color=colour(line.style),
                va="center", annotation_clip=False,
            )  # fmt: skip
