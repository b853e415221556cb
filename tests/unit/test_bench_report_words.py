"""Figures as words, colours, and labels that do not lie on each other."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.bench.findings import Interval
from ts_mps.bench.report.axes import log_ticks, spread_apart
from ts_mps.bench.report.markdown import escape
from ts_mps.bench.report.palette import COLOURS, PAPER, colour, marker
from ts_mps.bench.report.tables import flattened
from ts_mps.bench.wording import NONE, chance, clock, interval, load, number, ratio, share, times


@pytest.mark.parametrize(
    "value, text",
    [
        (None, NONE),
        (math.nan, NONE),
        (math.inf, NONE),
        (0, "0.00"),
        (0.0123, "0.012"),
        (8107.4, "8,107"),
        (15.12, "15.1"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_intervals_and_ratios():
    assert interval(Interval(100.0, 90.0, 110.0, 8)) == "100 (90.0 to 110)"
    assert interval(Interval(100.0, 100.0, 100.0, 2)) == "100"
    assert interval(None) == NONE
    assert times(Interval(1.42, 1.39, 1.45, 8)) == "1.42 (1.39 to 1.45)"
    assert times(Interval(0.996, 0.99, 1.01, 8)) == "0.996 (0.990 to 1.010)"
    assert times(Interval(math.nan, 0.9, 1.1, 8)) == NONE
    assert ratio(Interval(1.42, 1.39, 1.45, 8)) == "1.42 (95 % interval 1.39 to 1.45)"
    assert ratio(Interval(1.42, 1.42, 1.42, 2)) == times(Interval(1.42, 1.42, 1.42, 2)) == "1.42"


def test_loads():
    loads = [load(*one) for one in (("closed", 0.0), ("poisson", 120.0), ("constant", 8.5))]
    assert loads == ["closed loop", "120 requests/s (Poisson)", "8.50 requests/s (constant)"]


def test_what_is_nested_has_a_row_for_each_value():
    machine = {"cpu_quota": None, "gpus": [{"memory": 8 << 30}], "environment": ["OMP_NUM_THREADS=3"]}
    rows = [("cpu quota", NONE), ("gpus 0: memory", "8.0 GiB"), ("environment", "OMP_NUM_THREADS=3")]
    assert flattened(machine) == rows


def test_p_in_words():
    assert chance(None) == "too few pairs"
    assert chance(1 / 128) == "8 in 1,000 (p\u00a0=\u00a00.0078)"
    assert chance(0.81) == "81 in 100 (p\u00a0=\u00a00.81)"
    assert chance(0.0001) == "< 1 in 1,000 (p\u00a0=\u00a00.0001)"


def test_percentages_and_clocks():
    assert [share(part) for part in (0.0, 0.00001, 0.034, math.nan)] == ["0 %", "less than 0.01 %", "3.4 %", NONE]
    assert clock("2026-11-21T10:12:01+00:00") == "2026-11-21 10:12 UTC"
    assert clock("yesterday") == "yesterday"


def test_markdown_shows_a_text_as_it_is():
    assert escape("a|b\n<script> *x* [y](z) `c` a_b") == r"a\|b &lt;script> \*x\* \[y\](z) \`c\` a\_b"


def luminance(colour):
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("pair", [*COLOURS, PAPER["ink"], PAPER["quiet"]], ids=str)
@pytest.mark.parametrize("ground", ["page", "band"])
def test_every_text_has_a_contrast_of_4_5(mode, pair, ground):
    bright, dark = sorted((luminance(pair[mode]), luminance(PAPER[ground][mode])), reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= 4.5


def test_styles_are_told_apart_by_colour_and_marker():
    looks = [(colour(style), marker(style)) for style in range(36)]
    assert len(set(looks)) == 36
    assert len({colour(style) for style in range(6)}) == len({marker(style) for style in range(6)}) == 6


@given(st.lists(st.floats(0, 200), min_size=1, max_size=8))
def test_labels_keep_their_distance_their_order_and_the_axes(wanted):
    placed = spread_apart(wanted, 14, 0, 200)
    ordered = [placed[index] for index in sorted(range(len(wanted)), key=lambda index: wanted[index])]
    assert all(after - before >= 14 - 1e-9 for before, after in pairwise(ordered))
    assert min(placed) >= -1e-9 and max(placed) <= 200 + 1e-9


@given(st.floats(1e-3, 1e5), st.floats(1.02, 1e6))
def test_logarithmic_axes_have_a_few_ticks_within_them(low, span):
    ticks = log_ticks(low, low * span)
    assert len(ticks) <= 8
    assert all(low <= tick <= low * span for tick in ticks)
    assert ticks or span < 2
