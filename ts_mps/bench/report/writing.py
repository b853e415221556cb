"""A report's files: page, charts, CSV and Markdown into one folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ts_mps.bench.findings import Summary
from ts_mps.bench.records import Study
from ts_mps.bench.report.compose import chapter
from ts_mps.bench.report.markdown import markdown
from ts_mps.bench.report.page import page
from ts_mps.bench.report.parts import Chapter
from ts_mps.bench.report.sheets import figures_csv, runs_csv
from ts_mps.bench.report.svg import write_png
from ts_mps.errors import PreflightError

#: A line of report.md that shows a chart.
_PICTURE = r"^!\[.*\]\(([a-z0-9-]+-(?:ratio|throughput|latency|gpu)-[a-z0-9]+\.png)\)$"


@dataclass(frozen=True)
class Source:
    """One study that is reported on.

    Attributes:
        path: Its file.
        study: What was measured.
        summary: What was found in it.
    """

    path: Path
    study: Study
    summary: Summary


def chapters(sources: Sequence[Source]) -> list[Chapter]:
    """A chapter for each study, with keys made of the files' names."""
    found: list[Chapter] = []
    for source in sources:
        stem = re.sub("[^a-z0-9]+", "-", source.path.stem.lower()).strip("-") or "study"
        taken = {one.key for one in found}
        key = next(key for key in (stem, *(f"{stem}-{n}" for n in range(2, len(sources) + 2))) if key not in taken)
        found.append(chapter(source.study, source.summary, key, source.path.name))
    return found


def write_report(sources: Sequence[Source], folder: Path) -> tuple[Path, ...]:
    """Write report.html, report.md, runs.csv, figures.csv and a PNG for each chart.

    Args:
        sources: At least one.
        folder: Made if it is missing; files of an earlier report are replaced, and its other charts removed.

    Returns:
        What was written, the page first.

    Raises:
        PreflightError: It cannot be written there.
    """
    composed = chapters(sources)
    title = composed[0].title if len(composed) == 1 else "Benchmarks of ts-mps"
    names = _unique_names(sources)
    texts = {
        "report.html": page(composed, title),
        "report.md": markdown(composed),
        "runs.csv": runs_csv({name: source.study for name, source in zip(names, sources, strict=True)}),
        "figures.csv": figures_csv({name: source.summary for name, source in zip(names, sources, strict=True)}),
    }
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = _pictures(folder / "report.md")
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
            written.append(folder / name)
        for one in composed:
            for chart in (chart for part in one.parts for chart in part.charts):
                path = folder / f"{one.key}-{chart.name}.png"
                write_png(chart, path)
                written.append(path)
        for path in earlier.difference(written):
            path.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise PreflightError(
            f"The report cannot be written to {folder}: {why}.", "Name a folder that you may write into with -o DIR."
        ) from error
    return tuple(written)


def _pictures(report: Path) -> set[Path]:
    """The charts of an earlier report, by its own word: whatever else lies in its folder is somebody's."""
    if not report.is_file():
        return set()
    text = report.read_text(encoding="utf-8", errors="replace")
    return {report.with_name(name) for name in re.findall(_PICTURE, text, re.MULTILINE)}


def _unique_names(sources: Sequence[Source]) -> list[str]:
    """File names; whole paths where two files have the same name."""
    names = [source.path.name for source in sources]
    return names if len(set(names)) == len(names) else [str(source.path) for source in sources]
