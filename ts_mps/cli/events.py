"""``ts-mps events``: what happened to an instance, as a table or as JSON lines."""

from __future__ import annotations

import argparse
import json
import re
import select
import sys
import time
from collections.abc import Sequence
from datetime import datetime

from ts_mps.cli.options import home_of, instance_parser
from ts_mps.cli.render import note
from ts_mps.errors import NotRunningError
from ts_mps.events import Event, followed, recorded

#: Seconds between two looks for new events.
FOLLOW_EVERY = 0.5
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
#: Each line stands for itself, so that lines that come later fit under those that are there: name and least width.
_COLUMNS = (("TIME", 19), ("KIND", 16), ("GPU", 12), ("MODEL", 12), ("PID", 7), ("CAUSE", 16), ("TOOK", 7), ("WHAT", 0))


def parser() -> argparse.ArgumentParser:
    """The verb's options."""
    options = instance_parser("events", "Show what happened to an instance, oldest first; running or not.")
    options.add_argument("--follow", "-f", action="store_true", help="go on with new events until Ctrl-C")
    options.add_argument(
        "--since",
        type=since,
        metavar="WHEN",
        default=0.0,
        help="only from then on: so long ago (90s, 15m, 2h, 7d), or a time (2025-06-01T12:00, local unless it says)",
    )
    for action in options._actions:
        if action.dest == "json":
            action.help = "print one JSON object a line"
    return options


def since(text: str) -> float:
    """Seconds since the epoch of "15m" ago, or of an ISO 8601 time.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    if match := re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd])", text):
        return time.time() - float(match[1]) * _UNITS[match[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(f"'{text}' is neither a while (15m) nor a time (2025-06-01T12:00)") from None


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parsed = parser().parse_args(arguments)
    home = home_of(parsed)
    paths = home.instance(parsed.name)
    if not paths.root.is_dir():
        raise NotRunningError(f"Instance {paths.name} has never been started in {home.root}.")
    events = followed(paths, _pause) if parsed.follow else recorded(paths)
    shown = 0
    try:
        for event in events:
            if event.time < parsed.since:
                continue
            if not shown and not parsed.json:
                print(_row([name for name, _ in _COLUMNS]))
            print(json.dumps(event.as_json()) if parsed.json else line(event), flush=parsed.follow)
            shown += 1
    except KeyboardInterrupt:
        if not parsed.follow:
            raise
    if not shown and not parsed.json:
        note(f"Instance {paths.name} has no events{' since then' if parsed.since else ''}.")
    # What a closed pipe refuses must be met here and not at the interpreter's end.
    sys.stdout.flush()
    return 0


def line(event: Event) -> str:
    """One event as a line of the table."""
    return _row(
        [
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time)),
            event.kind,
            event.gpu[:12] or "-",
            event.model or "-",
            str(event.pid or "-"),
            event.cause or "-",
            "-" if event.seconds is None else f"{event.seconds:.1f} s",
            event.text,
        ]
    )


def _row(cells: Sequence[str]) -> str:
    # A text may hold what a CUDA error or a handler said: line breaks, and control characters for the terminal.
    clean = ["".join(c if c.isprintable() else " " for c in cell) for cell in cells]
    return "  ".join(f"{cell:<{width}}" for cell, (_, width) in zip(clean, _COLUMNS, strict=True)).rstrip()


def _pause() -> bool:
    """Wait for more; False once nobody reads our output (`| head`), which otherwise only the next event would show."""
    gone = select.poll()
    gone.register(sys.stdout.fileno(), 0)
    return not gone.poll(FOLLOW_EVERY * 1000)
