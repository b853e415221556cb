"""Our handlers against the naive ones: both loaded in one server, measured by turns. See README.md."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # ts_mps, where it is not installed

from machine import machine, usable_cores
from measure import Method, measure
from report import every_burst, line, table
from rows import ROWS, Row
from server import Failed


def run(rows: Sequence[Row], method: Method, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every row, print a line after each, and write all so far to ``--out``.

    Returns:
        The rows as they are in the JSON; one that could not be measured has an ``error``.
    """
    settings = {name: str(value) for name, value in vars(options).items()}
    document: dict[str, Any] = {"machine": machine(), "settings": settings, "rows": []}
    for row in rows:
        began = time.monotonic()
        found: dict[str, Any] = {"row": asdict(row), "connections": row.connections}
        document["rows"].append(found)
        try:
            measure(row, method, found)
        except Exception as error:
            found["error"] = str(error) if isinstance(error, Failed) else traceback.format_exc()
        found["took_s"] = round(time.monotonic() - began, 1)
        print(line(found), flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(document, indent=1))
    measured: list[dict[str, Any]] = document["rows"]
    return measured


def sound(found: dict[str, Any]) -> bool:
    """Whether a row could be measured, with equal answers and without errors."""
    return "error" not in found and found["agreement"]["fine"] and not any(one["errors"] for one in every_burst(found))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__)
    everything = ",".join(str(row.number) for row in ROWS)
    options.add_argument("--rows", default=everything, metavar="N,N", help="(default: %(default)s)")
    options.add_argument("--seconds", type=float, default=4.0, help="counted time of a burst (default: %(default)s)")
    options.add_argument("--repeats", type=int, default=3, help="bursts of each side (default: %(default)s)")
    options.add_argument("--out", type=Path, metavar="FILE", help="write everything there as JSON, after every row")
    options.add_argument("--work", type=Path, metavar="DIR", help="keep models there for the next run")
    options.add_argument("--cpu", action="store_true", help="tiny models, MPS off, to try it without a GPU")
    return options


def chosen(options: argparse.Namespace) -> list[Row]:
    """The rows that the command line asks for; it ends the program where they make no sense."""
    if options.seconds <= 0 or options.repeats < 1:
        sys.exit("--seconds and --repeats must be positive.")
    try:
        wanted = {int(number) for number in options.rows.split(",")}
    except ValueError:
        sys.exit(f"--rows: numbers with commas between them are needed, got {options.rows}.")
    if unknown := wanted - {row.number for row in ROWS}:
        sys.exit(f"There are no rows {sorted(unknown)}.")
    return [row.for_cpu() if options.cpu else row for row in ROWS if row.number in wanted]


def main() -> int:
    """Measure; 0 if every row could be measured with equal answers and without errors."""
    options = parser().parse_args()
    rows = chosen(options)
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the server is stopped
        if signal.getsignal(number) is not signal.SIG_IGN:  # which nohup sets
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="ts-mps-bench-") as scratch:
        work = (options.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        for row in rows:
            shutil.rmtree(work / f"row-{row.number}", ignore_errors=True)
        processes = max(1, min(4, usable_cores() // 4))
        method = Method(work, options.seconds, options.repeats, processes, options.cpu)
        measured = run(rows, method, options)
    print(f"\n{table(measured)}")
    return 0 if all(map(sound, measured)) else 1


if __name__ == "__main__":
    sys.exit(main())
