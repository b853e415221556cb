"""``ts-mps bench compare``: whether MPS pays for one model on this machine, so that the answer can be trusted."""

from __future__ import annotations

import argparse
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from ts_mps.bench.compare import begun, compare
from ts_mps.bench.conductor import Progress
from ts_mps.bench.records import Run, Study
from ts_mps.bench.report.reading import read_study
from ts_mps.bench.study import NotKept, StudyFile, resumed
from ts_mps.cli.bench_job import make_job, read_place
from ts_mps.cli.bench_options import parser
from ts_mps.cli.interruptible import interruptible
from ts_mps.cli.output import check_writable
from ts_mps.cli.render import note, print_json, progress, show
from ts_mps.errors import PreflightError, TsMpsError

__all__ = ["main", "parser"]

_WHAT = "The study"


def main(arguments: Sequence[str]) -> int:
    """Run the command. Everything that was measured is in the file, whatever ends it.

    Returns:
        0; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    Raises:
        TsMpsError: Nothing can be measured, or the study had to be broken off; no server of it is left.
    """
    options = parser().parse_args(arguments)
    output = _output(options)
    before = read_study(options.resume) if options.resume else None
    place = read_place(options)
    for sentence in place.notes:
        note(sentence)
    with tempfile.TemporaryDirectory(prefix="ts-mps-bench-") as scratch, interruptible() as caught:
        file: StudyFile | None = None
        try:
            job = make_job(options, place, Path(scratch))
            study = begun(job, place.machine)
            file = StudyFile(output, study if before is None else resumed(before, study, options.resume))
            file.save()
            compare(job, file, _Lines())
        except KeyboardInterrupt:
            number = caught[0] if caught else int(signal.SIGINT)
            if file is not None:
                file.end(f"It was interrupted by {signal.Signals(number).name}.")
                _told(file)
            return 128 + number
        except NotKept:
            raise
        except (TsMpsError, OSError) as error:
            if file is not None:
                file.end(f"It was broken off: {error}")
                _told(file)
            raise
    if options.json:
        print_json(file.study.as_json())
    else:
        _render(file.study)
    _told(file)
    return 0


def _output(options: argparse.Namespace) -> Path:
    """Where the study goes.

    Raises:
        PreflightError: It cannot be written there, or would replace another study.
    """
    output: Path = options.output or options.resume or Path("study.json")
    check_writable(output, _WHAT)
    if output.exists() and not options.force and (options.resume is None or not output.samefile(options.resume)):
        raise PreflightError(
            f"The file {output} exists.",
            f"Go on with it: --resume {output}. Begin anew in its place: --force. Or name another file with -o.",
        )
    return output


class _Lines:
    """Progress as lines: what was measured, what is next, and the time left."""

    def __init__(self) -> None:
        self._report = progress()
        self._told: Run | None = None

    def __call__(self, now: Progress) -> None:
        if now.run is not None and now.run is not self._told:
            self._told = now.run
            self._report(f"{now.run.arm}: {_said(now.run)}")
        if now.next:
            left = "" if now.seconds_left is None else f", {_duration(now.seconds_left)} left"
            self._report(f"run {now.done + 1} of {now.planned}{left}: {now.next}")


def _said(run: Run) -> str:
    if run.failure:
        return f"failed: {run.failure}"
    if run.result is None:
        return "no result"
    if run.result.void:
        return f"void: {run.result.void}"
    rate = f"{run.result.requests_per_second:.1f} requests/s"
    return f"{rate}, {run.clients} MPS clients" if run.clients else rate


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _told(file: StudyFile) -> None:
    study, path = file.study, file.path
    failed = sum(not run.counts for run in study.runs)
    note(f"Runs in {path}: {len(study.runs)}" + (f", {failed} of which do not count." if failed else "."))
    if study.incomplete:
        note(f"{study.incomplete} Go on with: --resume {path}")
    note(f"For the whole report: ts-mps bench report {path} -o DIR")


def _render(study: Study) -> None:
    from ts_mps.bench.summary import summarise

    show(f"[bold]{escape(summarise(study).headline)}[/]")
