"""The options of ``ts-mps bench compare``."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from ts_mps.bench.arms import ENGINES
from ts_mps.bench.reproductions import REPRODUCTIONS
from ts_mps.cli.numbers import (
    MOST_BATCH,
    MOST_WORKERS,
    from_zero,
    percentages,
    positive,
    whole_number,
    whole_numbers,
)
from ts_mps.cli.options import VerbParser, add_payload
from ts_mps.cli.output import file_option

#: Bounds that only a slip of the pen reaches.
_MOST_BLOCKS = 1_000
_MOST_SECONDS = 3_600.0
_MOST_CONNECTIONS = 20_000
_MOST_MILLISECONDS = 600_000.0
_MOST_SEED = 999_999_999


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = VerbParser(
        prog="ts-mps bench compare",
        description="Measure one worker, several workers with MPS off, the same with MPS on and with thread "
        "percentages, on your model and this machine: in blocks that hold every arm once in random order, each run on "
        "a fresh server and daemon. Every run proves that all its workers are MPS clients, or that none is. The file "
        "holds every run as soon as it is measured; Ctrl-C keeps it.",
    )
    _what(options)
    _published(options)
    _arms(options)
    _method(options)
    _where(options)
    return options


def _what(options: argparse.ArgumentParser) -> None:
    add = options.add_argument_group("what is served and sent").add_argument
    add(
        "--workload",
        metavar="NAME",
        help="a workload of benchmarks/workloads (text, text-tiny for a CPU, ...), in place of your own",
    )
    add("--archive", metavar="ARCHIVE", type=file_option, help="your model: a .mar, a .tar.gz, or a folder")
    add_payload(add, ": files, or folders of files; they are sent in turn")
    add(
        "--check",
        choices=("status", "reference"),
        help="what a right answer is: status 200 and not empty, or also what the first server of the study answered to "
        "the same payload (default: what the workload says, else status)",
    )
    add(
        "--batch-delay",
        metavar="MS",
        type=partial(whole_number, most=60_000, least=0),
        help="maxBatchDelay of every arm (default: what the archive says, else 5)",
    )


def _published(options: argparse.ArgumentParser) -> None:
    add = options.add_argument_group("a published study, measured again").add_argument
    add(
        "--reproduce",
        choices=tuple(REPRODUCTIONS),
        help="measure this one's arms on its workload in place of your own, one study after the other, with a file for "
        "each in the folder -o; what is finished there is not measured again",
    )
    add("--part", metavar="NAME", help="of its studies this one alone")
    add(
        "--tiny",
        action="store_true",
        help="its tiny models on the CPU, to see that all works; so it is on a machine without a GPU, too",
    )


def _arms(options: argparse.ArgumentParser) -> None:
    add = options.add_argument_group("arms").add_argument
    add(
        "--workers",
        metavar="N,N",
        type=partial(whole_numbers, most=MOST_WORKERS),
        help="numbers of workers; one worker with MPS off is always measured (default: 1,2,4). With --reproduce: of "
        "the study's arms those with so many, and no others",
    )
    add(
        "--batch-sizes",
        metavar="N,N",
        type=partial(whole_numbers, most=MOST_BATCH),
        help="batch sizes (default: 8, or the workload's largest where 8 is none of its sizes). With --reproduce: of "
        "the study's arms those with such batches, and no others",
    )
    add(
        "--percentages",
        metavar="P,P",
        type=percentages,
        default=(),
        help="thread percentages to measure beside MPS without a limit (default: none)",
    )
    add(
        "--mps",
        choices=("both", "off"),
        default="both",
        help="off: no arms with MPS, as on a machine without a GPU (default: both)",
    )
    add(
        "--engine",
        metavar="NAME,NAME",
        type=_engines,
        default=ENGINES[:1],
        help="what serves, all in the same blocks: ts-mps; torchserve, stock TorchServe as its users start it; "
        "litserve, which takes the archive's own handler (default: ts-mps)",
    )
    add(
        "--ceiling",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure a no-op handler for each number of workers and batch size too: what the frontend itself can do "
        "(default: yes)",
    )
    add("--gpu", metavar="INDEX", type=int, help="nvidia-smi's number of the GPU (default: the first visible one)")


def _method(options: argparse.ArgumentParser) -> None:
    add = options.add_argument_group("method").add_argument
    add(
        "--blocks",
        metavar="N",
        type=partial(whole_number, most=_MOST_BLOCKS),
        help="blocks; fewer than six pairs allow no verdict (default: 6)",
    )
    seconds = partial(positive, most=_MOST_SECONDS)
    add("--seconds", metavar="S", type=seconds, help="counted time of a load (default: 10)")
    warm_up = partial(from_zero, most=_MOST_SECONDS)
    add("--warm-up", metavar="S", type=warm_up, help="the same load before it (default: 5)")
    add(
        "--connections",
        metavar="N",
        type=partial(whole_number, most=_MOST_CONNECTIONS),
        help="of the closed loop, each with one request in flight; the same for all arms (default: 4 times the largest "
        "product of workers and batch size)",
    )
    add(
        "--slo-ms",
        metavar="MS",
        type=partial(positive, most=_MOST_MILLISECONDS),
        help="look also for the largest rate of Poisson arrivals at which 99 %% are answered in this time, on the best "
        "arm with MPS off and the best with MPS on of each engine and device",
    )
    add(
        "--slo-steps",
        metavar="N",
        type=partial(whole_number, most=20),
        default=6,
        help="rates tried on each of them, by bisection (default: 6)",
    )
    add(
        "--seed",
        metavar="N",
        type=partial(whole_number, most=_MOST_SEED, least=0),
        default=0,
        help="from which orders, arrivals and payloads are drawn (default: 0)",
    )
    add("--timeout", metavar="S", type=seconds, default=60.0, help="seconds that an answer may take (default: 60)")
    add(
        "--ready-timeout",
        metavar="S",
        type=seconds,
        default=300.0,
        help="seconds until all workers of a server must be ready (default: 300)",
    )


def _where(options: argparse.ArgumentParser) -> None:
    add = options.add_argument_group("machine and result").add_argument
    add(
        "--generator-cores",
        metavar="N",
        type=partial(whole_number, most=4_096),
        help="cores of the load generator, which the server does not get (default: a quarter, at least one)",
    )
    add(
        "--processes",
        metavar="N",
        type=partial(whole_number, most=4_096),
        help="processes of the generator (default: one for each of its cores)",
    )
    add(
        "--port",
        metavar="N",
        type=partial(whole_number, most=65_535),
        help="port of the servers' REST inference (default: any free one)",
    )
    add("--work", metavar="DIR", type=Path, help="keep built models there for the next study (default: nowhere)")
    add(
        "-o",
        "--output",
        metavar="FILE",
        type=file_option,
        help="where the study goes (default: study.json); with --reproduce a folder for its studies",
    )
    exclusive = options.add_mutually_exclusive_group()
    exclusive.add_argument("--resume", metavar="FILE", type=file_option, help="go on with a study that was broken off")
    exclusive.add_argument("--force", action="store_true", help="begin anew although the output exists")
    options.add_argument("--json", action="store_true", help="print the study as one JSON object")


def _engines(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in ENGINES:
            raise argparse.ArgumentTypeError(f"'{name}' is no engine; there are {', '.join(ENGINES)}")
    return names
