"""Chapters as one HTML page that needs nothing else: no network, no other file, no script."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ts_mps import __version__
from ts_mps.bench.report.palette import variables
from ts_mps.bench.report.parts import Chapter, Chart, Column, Table
from ts_mps.bench.report.svg import inline_svg


def overview(chapters: Sequence[Chapter]) -> Table:
    """The verdicts of several studies."""
    rows = tuple((one.title, one.headline) for one in chapters)
    return Table("Verdicts", (Column("Study", numeric=False), Column("Verdict", numeric=False)), rows)


def page(chapters: Sequence[Chapter], title: str) -> str:
    """The page.

    Every text from a study is escaped; only the charts' SVG, whose texts matplotlib escapes, is put in as it is.

    Args:
        chapters: At least one.
        title: The page's.
    """
    environment = Environment(
        loader=PackageLoader("ts_mps.bench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
    )
    css, _, _ = environment.loader.get_source(environment, "report.css")  # type: ignore[union-attr]
    return environment.get_template("report.html.j2").render(
        chapters=chapters,
        overview=overview(chapters),
        title=title,
        version=__version__,
        colours=variables(),
        css=Markup(css),
        svg=_svg,
    )


def _svg(chart: Chart, key: str, *, narrow: bool) -> Markup:
    return Markup(inline_svg(chart, key, narrow=narrow))
