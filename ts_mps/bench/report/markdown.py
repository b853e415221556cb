"""Chapters as Markdown, for documentation and pull requests."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ts_mps.bench.report.parts import Chapter, Part, Table

#: These say in a pull request what its readers need; machine, method and the raw runs stay in the page and the CSV.
_LEFT_OUT = frozenset({"method", "runs", "figures", "machine"})


def markdown(chapters: Sequence[Chapter], pictures: bool = True) -> str:
    """The chapters, without method and raw runs.

    Args:
        chapters: At least one.
        pictures: Whether to show the PNG charts, which lie beside the file.
    """
    blocks: list[str] = []
    for chapter in chapters:
        blocks += [f"# {escape(chapter.title)}", f"**{escape(chapter.headline)}**"]
        blocks.append("\n".join(f"- {escape(name)}: {escape(value)}" for name, value in chapter.facts))
        for part in chapter.parts:
            if part.anchor not in _LEFT_OUT:
                blocks += _part(chapter, part, pictures)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _part(chapter: Chapter, part: Part, pictures: bool) -> list[str]:
    blocks = [f"## {escape(part.title)}", *(escape(text) for text in part.text)]
    blocks.append("\n".join(f"- {escape(text)}" for text in part.bullets))
    if pictures:
        blocks += [f"![{escape(chart.title)}]({chapter.key}-{chart.name}.png)" for chart in part.charts]
    blocks += [table_markdown(table) for table in part.tables if not table.page_only]
    return blocks


def table_markdown(table: Table) -> str:
    """A table with its title."""
    lines = [
        f"| {' | '.join(escape(column.title) for column in table.columns)} |",
        f"|{'|'.join('---:' if column.numeric else '---' for column in table.columns)}|",
        *(f"| {' | '.join(escape(cell) for cell in row)} |" for row in table.rows),
    ]
    return f"### {escape(table.title)}\n\n" + "\n".join(lines)


def escape(text: str) -> str:
    """A text that Markdown shows as it is: no markup, no HTML, no new column, no new line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text)
