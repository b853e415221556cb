"""A drawn chart as SVG that belongs to a page, and as PNG."""

from __future__ import annotations

import re
from io import BytesIO, StringIO
from pathlib import Path
from xml.etree import ElementTree

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ts_mps.bench.report.axes import NARROW, WIDE, style
from ts_mps.bench.report.line_drawing import draw_lines
from ts_mps.bench.report.palette import variables
from ts_mps.bench.report.parts import Chart, RowChart
from ts_mps.bench.report.row_drawing import draw_rows

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_PNG_DPI = 144


def inline_svg(chart: Chart, key: str, *, narrow: bool = False) -> str:
    """The chart as an ``svg`` element for a page.

    Its colours are the page's CSS variables, so that it follows the dark mode; its texts are text, in the page's font;
    its ids begin with ``key``, as a page has many charts; it says of itself what it shows.

    Args:
        chart: What is drawn.
        key: Unique in the page.
        narrow: Drawn for a phone.
    """
    text = StringIO()
    with style():
        figure = _draw(chart, NARROW if narrow else WIDE)
        FigureCanvasSVG(figure)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(text.getvalue())
    metadata = root.find(f"{{{_SVG}}}metadata")
    if metadata is not None:
        root.remove(metadata)
    _own_ids(root, key)
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", _themed(element.attrib["style"]))
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    # The class sets the size; the height follows from the viewBox.
    root.set("class", "narrow" if narrow else "wide")
    root.set("role", "img")
    root.set("aria-label", f"{chart.title}. {chart.alt}")
    return ElementTree.tostring(root, encoding="unicode")


def write_png(chart: Chart, path: Path) -> None:
    """The chart as a picture with its title, on white.

    Raises:
        OSError: It cannot be written.
    """
    picture = BytesIO()
    with style():
        figure = _draw(chart, WIDE)
        FigureCanvasAgg(figure)
        height = figure.get_size_inches()[1]
        figure.text(12 / WIDE, 1 + 10 / (height * 72), chart.title, fontsize=14, fontweight="bold", va="bottom")
        figure.savefig(
            picture,
            format="png",
            dpi=_PNG_DPI,
            facecolor="white",
            bbox_inches="tight",
            metadata={"Title": chart.title, "Description": chart.alt.encode("latin-1", "replace").decode("latin-1")},
        )
    path.write_bytes(picture.getvalue())


def _draw(chart: Chart, width: int) -> Figure:
    return draw_rows(chart, width) if isinstance(chart, RowChart) else draw_lines(chart, width)


def _own_ids(root: ElementTree.Element, key: str) -> None:
    """Ids that something points to get ``key``; the others go."""
    link = f"{{{_XLINK}}}href"
    used = set(re.findall(r"url\(#([^)]+)\)", " ".join(v for e in root.iter() for v in e.attrib.values())))
    used |= {element.attrib[link][1:] for element in root.iter() if link in element.attrib}
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in used:
            element.set("id", f"{key}-{name}")
        for attribute, value in element.attrib.items():
            if attribute == link:
                element.set(attribute, f"#{key}-{value[1:]}")
            elif "url(#" in value:
                element.set(attribute, value.replace("url(#", f"url(#{key}-"))


def _themed(style: str) -> str:
    for name, (light, _) in variables().items():
        style = re.sub(rf"(?<=: ){light}\b", f"var(--{name})", style)
    return re.sub(r"font: ([^;]*?)'DejaVu Sans'[^;]*", r"font: \1system-ui, sans-serif", style)
