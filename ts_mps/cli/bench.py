"""``ts-mps bench``: measure, report, compare; each is a verb of its own in a module of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from ts_mps.cli import bench_compare, bench_report
from ts_mps.cli.options import VerbParser
from ts_mps.errors import UsageError

#: Name -> (one line of help, its parser, what runs it).
COMMANDS: dict[str, tuple[str, Callable[[], argparse.ArgumentParser], Callable[[Sequence[str]], int]]] = {
    "compare": ("measure MPS on against MPS off on one model", bench_compare.parser, bench_compare.main),
    "report": ("show what a study says: page, charts, CSV, Markdown", bench_report.report_parser, bench_report.report),
    "diff": ("compare the arms that two studies have in common", bench_report.diff_parser, bench_report.diff),
}


def parser() -> argparse.ArgumentParser:
    """What ``ts-mps bench --help`` shows; each command has a parser of its own, see :data:`COMMANDS`."""
    options = VerbParser(
        prog="ts-mps bench",
        description="Measure whether MPS pays for a model on this machine, with blocks in random order, proof of what "
        "every worker was, and the uncertainty of the answer.",
    )
    listed = "; ".join(f"{name}: {text}" for name, (text, _, _) in COMMANDS.items())
    options.add_argument("command", choices=tuple(COMMANDS), metavar="COMMAND", help=listed)
    return options


def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit code.

    Raises:
        TsMpsError: As the command raises it; a usage error where there is no such command.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        parser().print_help()
        return 0 if arguments else UsageError.exit_code
    name, *rest = arguments
    if name not in COMMANDS:
        raise UsageError(f"'{name}' is not a command of ts-mps bench.", f"Commands: {', '.join(COMMANDS)}.")
    return COMMANDS[name][2](rest)
