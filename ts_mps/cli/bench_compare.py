"""``ts-mps bench compare``: whether MPS pays for one model on this machine, so that the answer can be trusted."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ts_mps.bench.claims import claim_file
from ts_mps.bench.report.reading import read_study
from ts_mps.cli.bench_job import make_job, read_place
from ts_mps.cli.bench_options import parser
from ts_mps.cli.bench_reproduce import check_alone, reproduce
from ts_mps.cli.bench_run import WHAT, ended_by, measure, show_headline, told
from ts_mps.cli.interruptible import interruptible
from ts_mps.cli.output import check_writable
from ts_mps.cli.render import note, print_json
from ts_mps.errors import PreflightError

__all__ = ["main", "parser"]


def main(arguments: Sequence[str]) -> int:
    """Run the command. Everything that was measured is in the file, whatever ends it.

    Returns:
        0; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    Raises:
        TsMpsError: Nothing can be measured, or the study had to be broken off; no server of it is left.
    """
    options = parser().parse_args(arguments)
    if options.reproduce:
        return reproduce(options)
    check_alone(options)
    output = _output(options)
    with claim_file(output, WHAT):
        return _compare(options, output)


def _compare(options: argparse.Namespace, output: Path) -> int:
    before = read_study(options.resume) if options.resume else None
    place = read_place(options)
    for sentence in place.notes:
        note(sentence)
    with tempfile.TemporaryDirectory(prefix="ts-mps-bench-") as scratch, interruptible() as caught:
        try:
            file = measure(lambda: make_job(options, place, Path(scratch)), place, output, before, caught)
        except KeyboardInterrupt:
            return 128 + ended_by(caught)
    if options.json:
        print_json(file.study.as_json())
    else:
        show_headline(file.study)
    told(file)
    return 0


def _output(options: argparse.Namespace) -> Path:
    """Where the study goes.

    Raises:
        PreflightError: It cannot be written there, or would replace another study.
    """
    output: Path = options.output or options.resume or Path("study.json")
    check_writable(output, WHAT)
    if output.exists() and not options.force and (options.resume is None or not output.samefile(options.resume)):
        raise PreflightError(
            f"The file {output} exists.",
            f"Go on with it: --resume {output}. Begin anew in its place: --force. Or name another file with -o.",
        )
    return output
