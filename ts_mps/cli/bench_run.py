"""One study, measured into its file, with what is said meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.markup import escape

from ts_mps.bench.compare import Job, begun, compare
from ts_mps.bench.conductor import Progress
from ts_mps.bench.records import Run, Study
from ts_mps.bench.study import NotKept, StudyFile, resumed
from ts_mps.cli.bench_job import Place
from ts_mps.cli.render import note, progress, show
from ts_mps.errors import TsMpsError

#: What a message calls the file.
WHAT = "The study"


def measure(
    make: Callable[[], Job], place: Place, output: Path, before: Study | None, caught: Sequence[int]
) -> StudyFile:
    """Measure a study, or what is missing of it. The file holds every run as soon as it is made.

    Args:
        make: Makes the job; it may take minutes to build a model.
        place: Where.
        output: The file.
        before: What there is of the study; None to begin it.
        caught: Holds the signal's number after an interrupt, as ``interruptible`` fills it.

    Raises:
        TsMpsError: The job cannot be made, or the study had to be broken off; its file says why.
        KeyboardInterrupt: What was measured is kept; its file says that it was interrupted.
    """
    file: StudyFile | None = None
    try:
        job = make()
        study = begun(job, place.machine)
        file = StudyFile(output, study if before is None else resumed(before, study, output))
        file.save()
        compare(job, file, _Lines())
    except KeyboardInterrupt:
        if file is not None:
            file.end(f"It was interrupted by {signal.Signals(ended_by(caught)).name}.")
            told(file)
        raise
    except NotKept:
        raise
    except (TsMpsError, OSError) as error:
        if file is not None:
            file.end(f"It was broken off: {error}")
            told(file)
        raise
    return file


def ended_by(caught: Sequence[int]) -> int:
    """Number of the signal that interrupted."""
    return caught[0] if caught else int(signal.SIGINT)


def told(file: StudyFile) -> None:
    """Say what is in the file, and how to go on."""
    study, path = file.study, file.path
    failed = sum(not run.counts for run in study.runs)
    note(f"Runs in {path}: {len(study.runs)}" + (f", {failed} of which do not count." if failed else "."))
    if study.incomplete:
        again = f"--resume {path}" if study.kind == "compare" else "the same command"
        note(f"{study.incomplete} Go on with: {again}")
    note(f"For the whole report: ts-mps bench report {path} -o DIR")


def show_headline(study: Study) -> None:
    """The answer, on stdout."""
    from ts_mps.bench.summary import summarise

    show(f"[bold]{escape(summarise(study).headline)}[/]")


def duration(seconds: float) -> str:
    """A time as people say it: "80 s", "12 min", "3 h 5 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


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
            left = "" if now.seconds_left is None else f", {duration(now.seconds_left)} left"
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
