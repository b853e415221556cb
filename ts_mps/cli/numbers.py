"""Numbers as options take them: each function turns an option's text into a value, or says why it cannot."""

from __future__ import annotations

import argparse
import math
import re

#: Bounds that only a slip of the pen reaches: a batch is built in memory, and every worker is a process.
MOST_BATCH = 65_536
MOST_WORKERS = 128


def whole_number(text: str, most: int, least: int = 1) -> int:
    """A whole number from ``least`` to ``most``.

    Raises:
        argparse.ArgumentTypeError: It is not, as in all functions here.
    """
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from {least} to {most:,}")
    return int(text)


def whole_numbers(text: str, most: int) -> tuple[int, ...]:
    """Whole numbers from 1 to ``most`` with commas between them, ascending and each once."""
    return tuple(sorted({whole_number(part.strip(), most) for part in text.split(",")}))


def worker_numbers(text: str) -> tuple[int, ...]:
    """Numbers of workers; "none" for none."""
    return () if text == "none" else whole_numbers(text, MOST_WORKERS)


def number(text: str) -> float:
    """A finite number."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"'{text}' is no number")
    return found


def positive(text: str, most: float) -> float:
    """A number above 0 and up to ``most``."""
    found = number(text)
    if not 0 < found <= most:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and up to {most:g}")
    return found


def from_zero(text: str, most: float) -> float:
    """A number from 0 to ``most``."""
    found = number(text)
    if not 0 <= found <= most:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {most:g}")
    return found


def percentages(text: str) -> tuple[float, ...]:
    """Thread percentages below 100, highest first; "none" for none. 100 is the worker without a limit."""
    found = set() if text == "none" else {positive(part, 100) for part in text.split(",")}
    return tuple(sorted((share for share in found if share < 100), reverse=True))
