"""Colours and markers.

The hues are Okabe and Ito's, chosen so that people with any common colour blindness tell them apart
(https://jfly.uni-koeln.de/color/), darkened for white paper and lightened for a dark screen until text in them has a
contrast of 4.5:1. No chart relies on colour alone: each line has a marker of its own and its name at its end.
"""

from __future__ import annotations

#: (on light, on dark), by style: MPS off, MPS on, then whatever else.
COLOURS: tuple[tuple[str, str], ...] = (
    ("#b84700", "#f2914f"),  # vermilion
    ("#0063a6", "#6db8f2"),  # blue
    ("#00755a", "#3fcca3"),  # bluish green
    ("#964478", "#e39ac7"),  # reddish purple
    ("#7a5b00", "#e6ba40"),  # orange, as far as text in it can be read
    ("#595959", "#b5b5b5"),  # grey
)
MARKERS = ("s", "o", "^", "D", "v", "P")

#: Name -> (on light, on dark): what a page and its charts have besides.
PAPER: dict[str, tuple[str, str]] = {
    "page": ("#ffffff", "#15181c"),
    "ink": ("#1c1f23", "#e8eaed"),
    "quiet": ("#575e66", "#a5adb6"),
    "line": ("#d5d9de", "#3a4048"),
    "band": ("#eceff2", "#252a30"),
}


def colour(style: int) -> str:
    """The colour of a style on white paper."""
    return COLOURS[style % len(COLOURS)][0]


def marker(style: int) -> str:
    """Its marker; beyond the sixth style colours return with another one."""
    return MARKERS[(style + style // len(COLOURS)) % len(MARKERS)]


def variables() -> dict[str, tuple[str, str]]:
    """CSS variable -> (on light, on dark), for everything that is drawn."""
    return {**{f"style-{place}": pair for place, pair in enumerate(COLOURS)}, **PAPER}
