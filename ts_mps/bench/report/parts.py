"""What a report is made of, as data: composed once, then written as HTML, Markdown, CSV or text for a terminal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: Its header, with the unit.
        numeric: Whether its cells are figures, which stand right-aligned.
    """

    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it.

    Attributes:
        title: What it shows, as a short phrase.
        columns: Its columns, the first for the rows' names.
        rows: Cells as text, as many as columns.
        page_only: Whether it is more than a terminal or a pull request should show; on a page it stands folded.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    page_only: bool = False


@dataclass(frozen=True)
class Point:
    """One figure in a chart; ``low`` and ``high`` are the same as ``y`` where there is no interval."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        label: Stands at its end.
        style: Number of its colour and marker; the same in every chart of a study.
        points: Ascending by x.
        dashed: Whether its line is, for what is second to another series of the same colour.
    """

    label: str
    style: int
    points: tuple[Point, ...]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes; several of a chart share their scales."""

    title: str
    series: tuple[Series, ...]


@dataclass(frozen=True)
class LineChart:
    """Lines over a measured quantity.

    Attributes:
        name: Of its file, without ending.
        title: What it shows, with units.
        alt: The same in words, with the figures that matter, for who cannot see it.
        x_label: With its unit.
        y_label: With its unit.
        panels: At least one.
        x_ticks: Values to label; empty where any will do.
        log_x: Whether each step to the right doubles.
        log_y: Whether the y axis is logarithmic; else it begins at 0.
        most: Upper end of the y axis; None for what fits.
        limit: A line across, such as an objective; None for none.
        limit_label: Stands at it.
    """

    name: str
    title: str
    alt: str
    x_label: str
    y_label: str
    panels: tuple[Panel, ...]
    x_ticks: tuple[float, ...] = ()
    log_x: bool = False
    log_y: bool = False
    most: float | None = None
    limit: float | None = None
    limit_label: str = ""


@dataclass(frozen=True)
class Mark:
    """A figure on a row: ``label`` stands above it in the first row."""

    at: float
    low: float
    high: float
    label: str = ""


@dataclass(frozen=True)
class Row:
    """One line of a row chart.

    Attributes:
        label: Whose figures they are.
        style: As in :class:`Series`.
        marks: From left to right.
        text: Stands at its right end.
    """

    label: str
    style: int
    marks: tuple[Mark, ...]
    text: str


@dataclass(frozen=True)
class RowChart:
    """Figures on rows, one row for each arm or contrast.

    Attributes:
        name: As in :class:`LineChart`, as the next two.
        title: What it shows, with units.
        alt: In words.
        x_label: With its unit.
        rows: At least one.
        log_x: Whether the axis is logarithmic.
        centre: Where a line stands that figures are compared with; None for none.
        margin: Half width of the band around ``centre``.
    """

    name: str
    title: str
    alt: str
    x_label: str
    rows: tuple[Row, ...]
    log_x: bool = False
    centre: float | None = None
    margin: float = 0.0


Chart = LineChart | RowChart


@dataclass(frozen=True)
class Part:
    """A section of a chapter.

    Attributes:
        anchor: Unique in its chapter.
        title: Its heading.
        text: Paragraphs.
        bullets: Sentences, after the text.
        charts: After the bullets.
        tables: After the charts.
        details: (title, text of a log), shown as they are.
    """

    anchor: str
    title: str
    text: tuple[str, ...] = ()
    bullets: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Chapter:
    """Everything that is said of one study.

    Attributes:
        key: Short and unique in a report; part of file names.
        source: Name of the file that it was made from.
        title: The study's.
        headline: The verdict.
        facts: (name, value) of what a reader should know first: model, machine, blocks.
        parts: In reading order, the contrasts first.
    """

    key: str
    source: str
    title: str
    headline: str
    facts: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]
