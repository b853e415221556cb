"""A study's file: begun, kept after every run, and gone on with later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ts_mps.bench.arms import baseline_first
from ts_mps.bench.machine import different
from ts_mps.bench.records import Run, Study
from ts_mps.errors import PreflightError, TsMpsError
from ts_mps.files import write_json

_REMEDY = "Repeat the command with the same options and files on the same machine, or begin a new study with -o FILE."


class NotKept(TsMpsError):
    """The study's file cannot be written any more; the last good one stays."""


class StudyFile:
    """A study and the file that always holds all of it.

    Args:
        path: The file; replaced in one step, so that it is whole at any instant.
        study: What it shall hold.
    """

    def __init__(self, path: Path, study: Study) -> None:
        self.path, self.study = path, study

    def add(self, run: Run) -> None:
        """Add a run and write the file, with the baseline in front of the other arms as far as it is known.

        Raises:
            NotKept: It cannot be written.
        """
        runs = (*self.study.runs, run)
        self.study = replace(self.study, runs=runs, arms=baseline_first(self.study.arms, runs))
        self.save()

    def end(self, incomplete: str) -> None:
        """Say why the study was broken off, or that it was not, and write the file.

        Raises:
            NotKept: It cannot be written.
        """
        self.study = replace(self.study, incomplete=incomplete)
        self.save()

    def save(self) -> None:
        """Write the file.

        Raises:
            NotKept: The disk is full, or the folder is gone or may not be written any more.
        """
        try:
            write_json(self.path.resolve(), self.study.as_json())
        except OSError as error:
            kept = "The file as it was before the last run is still whole." if self.path.exists() else ""
            raise NotKept(
                f"The study cannot be written to {self.path}: {error.strerror or error}. {kept}".strip(),
                f"Make room, then go on with --resume {self.path}.",
            ) from error


def resumed(before: Study, now: Study, path: Path) -> Study:
    """The study of a file, to be gone on with by a call that would begin ``now``.

    Raises:
        PreflightError: It is of another kind, workload, setting, arm or machine; runs of both may not be compared.
    """
    checks: tuple[tuple[str, Any, Any], ...] = (
        ("kind", before.kind, now.kind),
        ("number of blocks", before.blocks, now.blocks),
        ("seed", before.seed, now.seed),
    )
    for what, was, value in checks:
        if was != value:
            raise _refused(path, f"its {what} is {was}, and this call's is {value}")
    for what, old, new in (("workload", before.workload, now.workload), ("setting", before.settings, now.settings)):
        if difference := _difference(old, new):
            raise _refused(path, f"its {what} differs from this call's: {difference}")
    was_arms = {arm.name: arm for arm in before.arms}
    new_arms = {arm.name: arm for arm in now.arms}
    if was_arms != new_arms:
        names = sorted(name for name in {*was_arms, *new_arms} if was_arms.get(name) != new_arms.get(name))
        raise _refused(path, f"its arms differ from this call's: {', '.join(names)}")
    if difference := different(before.machine, now.machine):
        raise _refused(path, f"this is not the machine that it was begun on: {difference}")
    return replace(before, incomplete="")


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    # As JSON, because a tuple comes back from the file as a list.
    for name in sorted({*before, *now}):
        was, new = (json.dumps(one.get(name), sort_keys=True) for one in (before, now))
        if was != new:
            return f"{name} was {was} and is {new}"
    return ""


def _refused(path: Path, why: str) -> PreflightError:
    return PreflightError(f"The study {path} cannot be gone on with: {why}.", _REMEDY)
