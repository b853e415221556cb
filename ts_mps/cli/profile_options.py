"""The options of ``ts-mps profile``."""

from __future__ import annotations

import argparse
import math
import re
from functools import partial
from pathlib import Path

from ts_mps.cli.options import VerbParser
from ts_mps.cli.output import file_option

#: Bounds that only a slip of the pen reaches: a batch is built in memory, and every worker is a process.
_MOST_BATCH = 65_536
_MOST_WORKERS = 128
_MOST_WINDOWS = 1_000
_MOST_SECONDS = 3_600.0
_MOST_GAP_MS = 60_000.0


def parser() -> argparse.ArgumentParser:
    """The verb's options."""
    options = VerbParser(
        prog="ts-mps profile",
        description="Measure one model as TorchServe would run it, for `ts-mps plan`: memory and times of a worker by "
        "batch size and thread percentage, and the throughput of several workers with MPS off and on. The GPU should "
        "be used by nobody else meanwhile.",
    )
    add = options.add_argument
    add("archive", metavar="ARCHIVE", help="a .mar, a .tar.gz, or a folder")
    add(
        "--payload",
        metavar="FILE",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        help="what clients send as the body of a request; several files are sent in turn",
    )
    add("--content-type", metavar="T", help="their Content-Type (default: application/json for .json, else none)")
    add(
        "--batch-sizes",
        metavar="N,N",
        type=partial(_whole_numbers, most=_MOST_BATCH),
        default=(1, 2, 4, 8, 16, 32, 64),
        help="batch sizes to measure (default: 1,2,4,8,16,32,64)",
    )
    add(
        "--scaling-batch",
        metavar="N",
        type=partial(_whole_number, most=_MOST_BATCH),
        help="batch size for several workers and thread percentages (default: the archive's batchSize, else 1)",
    )
    add(
        "--workers",
        metavar="N,N",
        type=_worker_numbers,
        help="numbers of workers to measure; none: leave that out (default: 1,2,4,8,16, as far as there are cores)",
    )
    add(
        "--percentages",
        metavar="P,P",
        type=_percentages,
        default=(75.0, 50.0, 25.0),
        help="thread percentages to measure under MPS; 100 is the run without a limit (default: 100,75,50,25)",
    )
    add(
        "--seconds",
        metavar="S",
        type=partial(_positive, most=_MOST_SECONDS),
        default=2.0,
        help="length of each measurement (default: 2)",
    )
    add(
        "--repeats",
        metavar="N",
        type=partial(_whole_number, most=_MOST_WINDOWS),
        default=3,
        help="windows per number of workers (default: 3)",
    )
    add(
        "--gap-ms",
        metavar="MS",
        type=_gap,
        default=0.4,
        help="time between an answer and the next batch, which TorchServe's frontend takes (default: 0.4)",
    )
    add("--gpu", metavar="INDEX", type=int, help="nvidia-smi's number of the GPU (default: the first visible one)")
    add("--mps", choices=("auto", "on", "off"), default="auto", help="as in ts-mps start (default: auto)")
    add("--shared-gpu", action="store_true", help="measure although other processes use the GPU")
    add("-o", "--output", metavar="FILE", type=file_option, help="where the profile goes (default: MODEL.profile.json)")
    add("--json", action="store_true", help="print the profile as one JSON object")
    return options


def _whole_number(text: str, most: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1 to {most:,}")
    return int(text)


def _whole_numbers(text: str, most: int) -> tuple[int, ...]:
    return tuple(sorted({_whole_number(part.strip(), most) for part in text.split(",")}))


def _worker_numbers(text: str) -> tuple[int, ...]:
    return () if text == "none" else _whole_numbers(text, _MOST_WORKERS)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"'{text}' is no number")
    return number


def _positive(text: str, most: float) -> float:
    number = _number(text)
    if not 0 < number <= most:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and up to {most:g}")
    return number


def _gap(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= _MOST_GAP_MS:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {_MOST_GAP_MS:g}")
    return number


def _percentages(text: str) -> tuple[float, ...]:
    """Those below 100, highest first; 100 is the worker without a limit, which is measured anyway."""
    found = set() if text == "none" else {_positive(part, 100) for part in text.split(",")}
    return tuple(sorted((number for number in found if number < 100), reverse=True))
