"""``ts-mps bench compare --reproduce``: published studies, measured again one after the other."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

from ts_mps.bench.claims import claim_file
from ts_mps.bench.compare import Job
from ts_mps.bench.load import prepare
from ts_mps.bench.records import Study
from ts_mps.bench.report.reading import read_study
from ts_mps.bench.reproductions import REPRODUCTIONS, Ground, Planned
from ts_mps.cli.bench_job import Measured, Place, Served, check_packages, job_of, read_place
from ts_mps.cli.bench_options import parser
from ts_mps.cli.bench_run import WHAT, duration, ended_by, measure, show_headline, told
from ts_mps.cli.interruptible import interruptible
from ts_mps.cli.output import check_writable
from ts_mps.cli.render import note, print_json
from ts_mps.errors import PreflightError, UsageError

#: Options that a reproduction decides on itself.
_DECIDED = (
    *("workload", "archive", "payload", "content_type", "batch_delay", "percentages"),
    *("mps", "engine", "ceiling", "check", "resume"),
)
#: Options that mean nothing without a reproduction.
_OURS = ("part", "tiny")


def check_alone(options: argparse.Namespace) -> None:
    """Refuse options of a reproduction where there is none.

    Raises:
        UsageError: There is one.
    """
    for name in _OURS:
        if getattr(options, name):
            raise UsageError(f"--{name} goes with --reproduce only.", "Leave it out.")


def reproduce(options: argparse.Namespace) -> int:
    """Measure the studies of a reproduction that are not finished in the output's folder.

    Returns:
        0; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    Raises:
        TsMpsError: Nothing can be measured, or a study had to be broken off; the same command goes on.
    """
    _check(options)
    place = read_place(options)
    for sentence in place.notes:
        note(sentence)
    planned = _wished(options, Ground(place.gpu is None, len(place.division.server)))
    check_packages({arm.engine for part in planned for arm in part.arms})
    folder = options.output or Path(options.reproduce)
    files = {part.name: folder / f"{part.name}.json" for part in planned}
    with ExitStack() as claims:
        for file in files.values():
            claims.enter_context(claim_file(file, WHAT))
        return _reproduce(options, place, planned, folder, files)


def _reproduce(
    options: argparse.Namespace, place: Place, planned: Sequence[Planned], folder: Path, files: Mapping[str, Path]
) -> int:
    before = {} if options.force else {part.name: _before(part, files[part.name], options) for part in planned}
    todo = [part for part in planned if not _finished(before.get(part.name))]
    _tell(planned, todo)
    _make_folder(folder)
    for part in todo:
        check_writable(files[part.name], WHAT)
    with tempfile.TemporaryDirectory(prefix="ts-mps-bench-") as scratch, interruptible() as caught:
        try:
            # Studies of one model follow one another, so that it is made once and only one lies on the disk.
            for _, group in groupby(todo, key=_model):
                with tempfile.TemporaryDirectory(dir=scratch) as shared:
                    for part in group:
                        note(f"{part.title}: {part.runs} runs, about {duration(part.expected_seconds)}")
                        with tempfile.TemporaryDirectory(dir=shared) as own:
                            make = partial(_job, options, place, part, Path(shared), Path(own))
                            file = measure(make, place, files[part.name], before.get(part.name), caught)
                        if not options.json:
                            show_headline(file.study)
                        told(file)
        except KeyboardInterrupt:
            return 128 + ended_by(caught)
    studies = [read_study(files[part.name]) for part in planned]
    if options.json:
        print_json({"version": 1, "studies": [study.as_json() for study in studies]})
    note(f"For the whole report: ts-mps bench report {folder}/*.json -o DIR")
    return 0


def _job(options: argparse.Namespace, place: Place, part: Planned, shared: Path, scratch: Path) -> Job:
    """Build what is served and sent.

    Args:
        options: As parsed.
        place: Where.
        part: What is measured.
        shared: Folder for the model, which the next study may use too.
        scratch: Folder for everything else.
    """
    work = options.work / options.reproduce if options.work else None
    own = work / part.name if work else scratch / "workload"
    what = part.workload
    made = prepare(what, own, model=(work or shared) / _model(part))
    return job_of(
        options,
        place,
        scratch,
        Served(what.name, made.archive, made.bodies, what.batch_sizes, what.check),
        title=part.title,
        arms=part.arms,
        load=Measured(part.blocks, part.seconds, part.warm_up, part.connections),
        kind=options.reproduce,
    )


def _model(part: Planned) -> str:
    return f"model-{part.workload.script}-{part.workload.preset}"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreflightError(
            f"The folder {folder} for the studies cannot be made: {error.strerror or error}.", "Name another with -o."
        ) from error


def _check(options: argparse.Namespace) -> None:
    usual = parser().parse_args([])
    for name in _DECIDED:
        if getattr(options, name) != getattr(usual, name):
            raise UsageError(
                f"--{name.replace('_', '-')} does not go with --reproduce {options.reproduce}, which decides on that.",
                "Leave one of them out.",
            )


def _wished(options: argparse.Namespace, ground: Ground) -> tuple[Planned, ...]:
    """The studies, with what the command line says in place of their own numbers."""
    every = REPRODUCTIONS[options.reproduce](ground)
    chosen = [part for part in every if options.part in (None, part.name)]
    if not chosen:
        names = ", ".join(part.name for part in every)
        raise UsageError(f"--part {options.part}: {options.reproduce} has no such study here.", f"There are {names}.")
    return tuple(
        replace(
            part,
            blocks=options.blocks or part.blocks,
            seconds=options.seconds or part.seconds,
            warm_up=part.warm_up if options.warm_up is None else options.warm_up,
            connections=options.connections or part.connections,
        )
        for part in (_kept(part, options) for part in chosen)
    )


def _kept(part: Planned, options: argparse.Namespace) -> Planned:
    """The study with those of its arms that have the workers and batch sizes that were asked for; its title says so.

    Raises:
        UsageError: A number was asked for that no arm has, or none together with the other numbers.
    """
    asked = (("--workers", options.workers, "workers"), ("--batch-sizes", options.batch_sizes, "batch_size"))
    arms = tuple(
        arm for arm in part.arms if all(not wanted or getattr(arm, field) in wanted for _, wanted, field in asked)
    )
    for option, wanted, field in asked:
        for number in wanted or ():
            if number not in (getattr(arm, field) for arm in arms):
                has = dict.fromkeys(f"{arm.workers} x {arm.batch_size}" for arm in part.arms)
                raise UsageError(
                    f"{option} {number}: no such arm is left of {part.name}.",
                    f"The workers and batch sizes of its arms are {', '.join(has)}. One study alone: --part NAME.",
                )
    return part if arms == part.arms else replace(part, arms=arms, title=f"{part.title} (some of its arms)")


def _before(part: Planned, file: Path, options: argparse.Namespace) -> Study | None:
    """What there is of a study.

    Raises:
        PreflightError: The file is no study, or one of something else: it is not to be overwritten or gone on with.
    """
    if not file.exists():
        return None
    study = read_study(file)
    search = {"objective_ms": options.slo_ms, "steps": options.slo_steps} if options.slo_ms else None
    has = (study.kind, study.title, study.blocks, study.seed, {arm.name for arm in study.arms})
    wants = (options.reproduce, part.title, part.blocks, options.seed, {arm.name for arm in part.arms})
    settings = {
        "seconds": part.seconds,
        "warm_up": part.warm_up,
        "connections": part.connections,
        "timeout": options.timeout,
        "search": search,
    }
    if has != wants or any(study.settings.get(name) != value for name, value in settings.items()):
        raise PreflightError(
            f"{file} is a study of something else, or with other settings or arms than this call's.",
            "Name another folder with -o, or begin anew in its place: --force.",
        )
    return study


def _finished(study: Study | None) -> bool:
    return study is not None and not study.incomplete


def _tell(planned: Sequence[Planned], todo: Sequence[Planned]) -> None:
    """What is measured and how long that takes, before it begins."""
    if finished := len(planned) - len(todo):
        note(f"{finished} of {len(planned)} studies are finished.")
    if todo:
        seconds = sum(part.expected_seconds for part in todo)
        runs = sum(part.runs for part in todo)
        note(f"Studies: {len(todo)}, {runs} runs, about {duration(seconds)}, and the time to make their models.")
        note(f"They are {', '.join(part.name for part in todo)}.")
