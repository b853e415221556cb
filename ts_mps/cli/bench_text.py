"""A chapter of a report as text for a terminal: the verdict first, no charts, no raw runs."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table as RichTable

from ts_mps.bench.report.parts import Chapter, Part, Table

#: In this order; everything else is for the page.
_SHOWN = ("verdict", "changes", "cautions", "throughput", "rates", "losses", "cost", "runs")
_VERDICTS = {"better": "[green]better[/]", "worse": "[red]worse[/]", "not decided": "[yellow]not decided[/]"}


def chapter_text(chapter: Chapter) -> RenderableType:
    """What a reader at a terminal wants of a chapter."""
    parts: list[RenderableType] = [f"[bold]{escape(chapter.title)}[/]", escape(chapter.headline)]
    parts += [f"[dim]{escape(name)}:[/] {escape(value)}" for name, value in chapter.facts]
    by_anchor = {part.anchor: part for part in chapter.parts}
    for anchor in _SHOWN:
        if anchor in by_anchor:
            parts += _part(by_anchor[anchor])
    return Group(*parts, "")


def _part(part: Part) -> list[RenderableType]:
    tables = [table for table in part.tables if not table.page_only]
    if not (tables or part.bullets or part.anchor in ("verdict", "losses", "changes")):
        return []
    shown: list[RenderableType] = ["", f"[bold]{escape(part.title)}[/]"]
    if part.anchor != "throughput":
        shown += [escape(text) for text in part.text]
    shown += [f"[yellow]-[/] {escape(text)}" for text in part.bullets]
    for table in tables:
        shown += [f"[dim]{escape(table.title)}[/]", table_text(table)]
    return shown


def table_text(table: Table) -> RichTable:
    """A table without lines, as the other verbs have them."""
    made = RichTable(box=None, pad_edge=False, header_style="dim")
    for column in table.columns:
        made.add_column(column.title, justify="right" if column.numeric else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*(_VERDICTS.get(cell, escape(cell)) for cell in row))
    return made
