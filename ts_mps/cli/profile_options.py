"""The options of ``ts-mps profile``."""

from __future__ import annotations

import argparse
from functools import partial

from ts_mps.cli.numbers import MOST_BATCH, from_zero, percentages, positive, whole_number, whole_numbers, worker_numbers
from ts_mps.cli.options import VerbParser, add_payload
from ts_mps.cli.output import file_option

#: Bounds that only a slip of the pen reaches.
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
    add_payload(add, "; several files are sent in turn")
    add(
        "--batch-sizes",
        metavar="N,N",
        type=partial(whole_numbers, most=MOST_BATCH),
        default=(1, 2, 4, 8, 16, 32, 64),
        help="batch sizes to measure (default: 1,2,4,8,16,32,64)",
    )
    add(
        "--scaling-batch",
        metavar="N",
        type=partial(whole_number, most=MOST_BATCH),
        help="batch size for several workers and thread percentages (default: the archive's batchSize, else 1)",
    )
    add(
        "--workers",
        metavar="N,N",
        type=worker_numbers,
        help="numbers of workers to measure; none: leave that out (default: 1,2,4,8,16, as far as there are cores)",
    )
    add(
        "--percentages",
        metavar="P,P",
        type=percentages,
        default=(75.0, 50.0, 25.0),
        help="thread percentages to measure under MPS; 100 is the run without a limit (default: 100,75,50,25)",
    )
    add(
        "--seconds",
        metavar="S",
        type=partial(positive, most=_MOST_SECONDS),
        default=2.0,
        help="length of each measurement (default: 2)",
    )
    add(
        "--repeats",
        metavar="N",
        type=partial(whole_number, most=_MOST_WINDOWS),
        default=3,
        help="windows per number of workers (default: 3)",
    )
    add(
        "--gap-ms",
        metavar="MS",
        type=partial(from_zero, most=_MOST_GAP_MS),
        default=0.4,
        help="time between an answer and the next batch, which TorchServe's frontend takes (default: 0.4)",
    )
    add("--gpu", metavar="INDEX", type=int, help="nvidia-smi's number of the GPU (default: the first visible one)")
    add("--mps", choices=("auto", "on", "off"), default="auto", help="as in ts-mps start (default: auto)")
    add("--shared-gpu", action="store_true", help="measure although other processes use the GPU")
    add("-o", "--output", metavar="FILE", type=file_option, help="where the profile goes (default: MODEL.profile.json)")
    add("--json", action="store_true", help="print the profile as one JSON object")
    return options
